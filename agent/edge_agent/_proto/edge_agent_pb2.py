"""Generated from edge-agent.proto by proto/generate.py; do not edit."""

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.internal import enum_type_wrapper

_POOL = descriptor_pool.DescriptorPool()
DESCRIPTOR = _POOL.AddSerializedFile(
    b'\n\x10edge-agent.proto\x12\x11AWS.LookoutVision"T\n\x12SharedMemoryHandle\x12'
    b'\x12\n\x04name\x18\x01 \x01(\tR\x04name\x12\x12\n\x04size\x18\x02 \x01(\x04R\x04size\x12\x16\n\x06offset\x18\x03 \x01(\x04R\x06off'
    b'set"\xb8\x01\n\x06Bitmap\x12\x14\n\x05width\x18\x01 \x01(\x05R\x05width\x12\x16\n\x06height\x18\x02 \x01(\x05R\x06height'
    b'\x12\x1d\n\tbyte_data\x18\x03 \x01(\x0cH\x00R\x08byteData\x12Y\n\x14shared_memory_handle\x18\x04 \x01('
    b'\x0b2%.AWS.LookoutVision.SharedMemoryHandleH\x00R\x12sharedMemoryHand'
    b'leB\x06\n\x04data"\xd2\x01\n\x11AnomalyMaskParams\x12W\n\x14shared_memory_handle\x18\x02 \x01'
    b'(\x0b2%.AWS.LookoutVision.SharedMemoryHandleR\x12sharedMemoryHandl'
    b'e\x12d\n\x1blegacy_shared_memory_handle\x18\x03 \x01(\x0b2%.AWS.LookoutVision.S'
    b'haredMemoryHandleR\x18legacySharedMemoryHandle"\xca\x01\n\x16DetectAnomal'
    b"iesRequest\x12'\n\x0fmodel_component\x18\x01 \x01(\tR\x0emodelComponent\x121\n\x06bitma"
    b'p\x18\x02 \x01(\x0b2\x19.AWS.LookoutVision.BitmapR\x06bitmap\x12T\n\x13anomaly_mask_p'
    b'arams\x18\x03 \x01(\x0b2$.AWS.LookoutVision.AnomalyMaskParamsR\x11anomalyMa'
    b'skParams"_\n\x0cPixelAnomaly\x122\n\x15total_percentage_area\x18\x01 \x01(\x02R\x13tot'
    b'alPercentageArea\x12\x1b\n\thex_color\x18\x02 \x01(\tR\x08hexColor"c\n\x07Anomaly\x12\x12\n\x04'
    b'name\x18\x01 \x01(\tR\x04name\x12D\n\rpixel_anomaly\x18\x02 \x01(\x0b2\x1f.AWS.LookoutVision.'
    b'PixelAnomalyR\x0cpixelAnomaly"\xa2\x02\n\x13DetectAnomalyResult\x12!\n\x0cis_ano'
    b'malous\x18\x01 \x01(\x08R\x0bisAnomalous\x12\x1e\n\nconfidence\x18\x02 \x01(\x02R\nconfidence\x12<\n'
    b'\x0canomaly_mask\x18\x03 \x01(\x0b2\x19.AWS.LookoutVision.BitmapR\x0banomalyMask\x12'
    b'8\n\tanomalies\x18\x04 \x03(\x0b2\x1a.AWS.LookoutVision.AnomalyR\tanomalies\x12#\n'
    b'\ranomaly_score\x18\x05 \x01(\x02R\x0canomalyScore\x12+\n\x11anomaly_threshold\x18\x06 \x01('
    b'\x02R\x10anomalyThreshold"u\n\x17DetectAnomaliesResponse\x12Z\n\x15detect_ano'
    b'maly_result\x18\x01 \x01(\x0b2&.AWS.LookoutVision.DetectAnomalyResultR\x13d'
    b'etectAnomalyResult"<\n\x11StartModelRequest\x12\'\n\x0fmodel_component\x18\x01'
    b' \x01(\tR\x0emodelComponent"L\n\x12StartModelResponse\x126\n\x06status\x18\x01 \x01(\x0e2\x1e'
    b'.AWS.LookoutVision.ModelStatusR\x06status";\n\x10StopModelRequest\x12\''
    b'\n\x0fmodel_component\x18\x01 \x01(\tR\x0emodelComponent"K\n\x11StopModelResponse'
    b'\x126\n\x06status\x18\x01 \x01(\x0e2\x1e.AWS.LookoutVision.ModelStatusR\x06status"\x13\n\x11'
    b'ListModelsRequest"\xd0\x01\n\rModelMetadata\x12\'\n\x0fmodel_component\x18\x01 \x01(\t'
    b'R\x0emodelComponent\x127\n\x18lookout_vision_model_arn\x18\x02 \x01(\tR\x15lookoutV'
    b'isionModelArn\x126\n\x06status\x18\x03 \x01(\x0e2\x1e.AWS.LookoutVision.ModelStatu'
    b'sR\x06status\x12%\n\x0estatus_message\x18\x04 \x01(\tR\rstatusMessage"N\n\x12ListMode'
    b'lsResponse\x128\n\x06models\x18\x01 \x03(\x0b2 .AWS.LookoutVision.ModelMetadata'
    b'R\x06models"?\n\x14DescribeModelRequest\x12\'\n\x0fmodel_component\x18\x01 \x01(\tR\x0em'
    b'odelComponent"\xd3\x01\n\x10ModelDescription\x12\'\n\x0fmodel_component\x18\x01 \x01(\tR'
    b'\x0emodelComponent\x127\n\x18lookout_vision_model_arn\x18\x02 \x01(\tR\x15lookoutVi'
    b'sionModelArn\x126\n\x06status\x18\x03 \x01(\x0e2\x1e.AWS.LookoutVision.ModelStatus'
    b'R\x06status\x12%\n\x0estatus_message\x18\x04 \x01(\tR\rstatusMessage"i\n\x15DescribeM'
    b'odelResponse\x12P\n\x11model_description\x18\x01 \x01(\x0b2#.AWS.LookoutVision.'
    b'ModelDescriptionR\x10modelDescription*O\n\x0bModelStatus\x12\x0b\n\x07STOPPED'
    b'\x10\x00\x12\x0c\n\x08STARTING\x10\x01\x12\x0b\n\x07RUNNING\x10\x02\x12\n\n\x06FAILED\x10\x03\x12\x0c\n\x08STOPPING\x10\x042\xe7\x03\n\t'
    b'EdgeAgent\x12h\n\x0fDetectAnomalies\x12).AWS.LookoutVision.DetectAnoma'
    b'liesRequest\x1a*.AWS.LookoutVision.DetectAnomaliesResponse\x12Y\n\nS'
    b'tartModel\x12$.AWS.LookoutVision.StartModelRequest\x1a%.AWS.Lookou'
    b'tVision.StartModelResponse\x12V\n\tStopModel\x12#.AWS.LookoutVision.'
    b'StopModelRequest\x1a$.AWS.LookoutVision.StopModelResponse\x12Y\n\nLi'
    b'stModels\x12$.AWS.LookoutVision.ListModelsRequest\x1a%.AWS.Lookout'
    b"Vision.ListModelsResponse\x12b\n\rDescribeModel\x12'.AWS.LookoutVisi"
    b'on.DescribeModelRequest\x1a(.AWS.LookoutVision.DescribeModelRes'
    b'ponseb\x06proto3'
)

SharedMemoryHandle = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["SharedMemoryHandle"])
Bitmap = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Bitmap"])
AnomalyMaskParams = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["AnomalyMaskParams"])
DetectAnomaliesRequest = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["DetectAnomaliesRequest"])
PixelAnomaly = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["PixelAnomaly"])
Anomaly = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["Anomaly"])
DetectAnomalyResult = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["DetectAnomalyResult"])
DetectAnomaliesResponse = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["DetectAnomaliesResponse"])
StartModelRequest = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["StartModelRequest"])
StartModelResponse = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["StartModelResponse"])
StopModelRequest = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["StopModelRequest"])
StopModelResponse = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["StopModelResponse"])
ListModelsRequest = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["ListModelsRequest"])
ModelMetadata = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["ModelMetadata"])
ListModelsResponse = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["ListModelsResponse"])
DescribeModelRequest = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["DescribeModelRequest"])
ModelDescription = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["ModelDescription"])
DescribeModelResponse = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["DescribeModelResponse"])
ModelStatus = enum_type_wrapper.EnumTypeWrapper(DESCRIPTOR.enum_types_by_name["ModelStatus"])
STOPPED = 0
STARTING = 1
RUNNING = 2
FAILED = 3
STOPPING = 4
