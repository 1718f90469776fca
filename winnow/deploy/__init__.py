"""The file that is deployed: ONNX export, runtimes, cards, predictions, the bundle that users take away."""
