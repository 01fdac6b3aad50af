// Detect on a PNG image with nothing but the proto: npm install && node detect.js SOCKET MODEL IMAGE.png
const fs = require("fs");
const path = require("path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");
const { PNG } = require("pngjs");

const [socket, model, file] = process.argv.slice(2);
const proto = path.join(__dirname, "../../../proto/edge-agent.proto");
const definition = loader.loadSync(proto, { keepCase: true, defaults: true, enums: String });
const { EdgeAgent } = grpc.loadPackageDefinition(definition).AWS.LookoutVision;
// Without this, gRPC refuses answers above 4 MiB: an inline mask of a 1920x1080 image has 5.9 MiB.
const client = new EdgeAgent(`unix://${socket}`, grpc.credentials.createInsecure(), {
  "grpc.max_receive_message_length": -1,
});

function call(method, request) {
  return new Promise((resolve, reject) =>
    client[method](request, (error, response) => (error ? reject(error) : resolve(response)))
  );
}

// pngjs gives RGBA; the agent takes packed RGB.
function readRgb(name) {
  const png = PNG.sync.read(fs.readFileSync(name));
  const rgb = Buffer.alloc(3 * png.width * png.height);
  for (let from = 0, to = 0; from < png.data.length; from += 4, to += 3) {
    png.data.copy(rgb, to, from, from + 3);
  }
  return { width: png.width, height: png.height, byte_data: rgb };
}

async function main() {
  const describe = async () => (await call("DescribeModel", { model_component: model })).model_description;
  let description = await describe();
  if (description.status === "STOPPED" || description.status === "FAILED") {
    await call("StartModel", { model_component: model });
    description = await describe();
  }
  while (description.status === "STARTING") {
    await new Promise((resolve) => setTimeout(resolve, 200));
    description = await describe();
  }
  if (description.status !== "RUNNING") {
    throw new Error(`${description.status}: ${description.status_message}`);
  }
  const response = await call("DetectAnomalies", { model_component: model, bitmap: readRgb(file) });
  const result = response.detect_anomaly_result;
  console.log(result.is_anomalous ? "anomalous" : "normal", result.confidence.toFixed(4));
  for (const anomaly of result.anomalies) {
    const { total_percentage_area, hex_color } = anomaly.pixel_anomaly;
    console.log(`  ${anomaly.name} ${total_percentage_area.toFixed(4)} ${hex_color}`);
  }
}

main()
  .catch((error) => {
    console.error(error.details || error.message);
    process.exitCode = 1;
  })
  .finally(() => client.close());
