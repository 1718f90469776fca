"""Deploy a candidate: ONNX export, runtimes, cards, predictions, the exported bundle."""
