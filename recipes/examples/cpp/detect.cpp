// Detect on a binary PPM (P6) image through shared memory, with nothing but the proto:
//   cmake -B build && cmake --build build && build/detect SOCKET MODEL IMAGE.ppm
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "edge-agent.grpc.pb.h"

namespace api = AWS::LookoutVision;

struct Image {
  int width = 0, height = 0;
  std::vector<char> rgb;
};

Image ReadPpm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int most = 0;
  Image image;
  file >> magic >> image.width >> image.height >> most;
  file.get();
  if (!file || magic != "P6" || most != 255) throw std::runtime_error(path + " is not a binary PPM image");
  image.rgb.resize(size_t{3} * image.width * image.height);
  file.read(image.rgb.data(), static_cast<std::streamsize>(image.rgb.size()));
  if (!file) throw std::runtime_error(path + " is cut short");
  return image;
}

// A segment for the frame and, behind it, the mask; the agent's group may use it.
class Segment {
 public:
  Segment(const std::string& socket, size_t size) : name_("/edge-agent-example-" + std::to_string(getpid())), size_(size) {
    int fd = shm_open(name_.c_str(), O_RDWR | O_CREAT | O_EXCL, 0660);
    if (fd < 0) throw std::runtime_error("shm_open: " + std::string(std::strerror(errno)));
    struct stat info{};
    fchmod(fd, 0660);
    if (stat(socket.c_str(), &info) == 0 && fchown(fd, static_cast<uid_t>(-1), info.st_gid) != 0) {
      std::cerr << "note: not in the agent's group; it can read the frame only if it runs as the same user\n";
    }
    // Not ftruncate: it promises memory that may not be there, and the first write would end the program.
    int failed = posix_fallocate(fd, 0, static_cast<off_t>(size));
    void* memory = failed ? MAP_FAILED : mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (memory == MAP_FAILED) {
      shm_unlink(name_.c_str());
      throw std::runtime_error("no room in /dev/shm");
    }
    data_ = static_cast<char*>(memory);
  }
  ~Segment() {
    munmap(data_, size_);
    shm_unlink(name_.c_str());
  }
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  const std::string& name() const { return name_; }
  char* data() const { return data_; }

 private:
  std::string name_;
  size_t size_;
  char* data_ = nullptr;
};

void Check(const grpc::Status& status) {
  if (!status.ok()) throw std::runtime_error(status.error_message());
}

api::ModelDescription Describe(api::EdgeAgent::Stub& stub, const std::string& model) {
  grpc::ClientContext context;
  api::DescribeModelRequest request;
  api::DescribeModelResponse response;
  request.set_model_component(model);
  Check(stub.DescribeModel(&context, request, &response));
  return response.model_description();
}

void Start(api::EdgeAgent::Stub& stub, const std::string& model) {
  auto description = Describe(stub, model);
  if (description.status() == api::STOPPED || description.status() == api::FAILED) {
    grpc::ClientContext context;
    api::StartModelRequest request;
    api::StartModelResponse response;
    request.set_model_component(model);
    Check(stub.StartModel(&context, request, &response));
    description = Describe(stub, model);
  }
  while (description.status() == api::STARTING) {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    description = Describe(stub, model);
  }
  if (description.status() != api::RUNNING) throw std::runtime_error(description.status_message());
}

void Detect(api::EdgeAgent::Stub& stub, const std::string& socket, const std::string& model, const Image& image) {
  const size_t size = image.rgb.size();
  Segment segment(socket, 2 * size);
  std::memcpy(segment.data(), image.rgb.data(), size);
  grpc::ClientContext context;
  api::DetectAnomaliesRequest request;
  api::DetectAnomaliesResponse response;
  request.set_model_component(model);
  request.mutable_bitmap()->set_width(image.width);
  request.mutable_bitmap()->set_height(image.height);
  auto* frame = request.mutable_bitmap()->mutable_shared_memory_handle();
  frame->set_name(segment.name());
  frame->set_size(size);
  auto* mask = request.mutable_anomaly_mask_params()->mutable_shared_memory_handle();
  mask->set_name(segment.name());
  mask->set_size(size);
  mask->set_offset(size);
  Check(stub.DetectAnomalies(&context, request, &response));
  const auto& result = response.detect_anomaly_result();
  std::printf("%s %.4f\n", result.is_anomalous() ? "anomalous" : "normal", result.confidence());
  for (const auto& anomaly : result.anomalies()) {
    std::printf("  %s %.4f %s\n", anomaly.name().c_str(), anomaly.pixel_anomaly().total_percentage_area(),
                anomaly.pixel_anomaly().hex_color().c_str());
  }
  if (result.has_anomaly_mask()) {
    size_t marked = 0;
    for (const char* pixel = segment.data() + size; pixel < segment.data() + 2 * size; pixel += 3) {
      marked += std::memcmp(pixel, "\xff\xff\xff", 3) != 0;
    }
    std::printf("  mask: %zu pixels marked\n", marked);
  }
}

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: detect SOCKET MODEL IMAGE.ppm\n";
    return 2;
  }
  try {
    const std::string socket = argv[1], model = argv[2];
    auto stub = api::EdgeAgent::NewStub(grpc::CreateChannel("unix://" + socket, grpc::InsecureChannelCredentials()));
    Start(*stub, model);
    Detect(*stub, socket, model, ReadPpm(argv[3]));
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
