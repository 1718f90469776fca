"""Check that an exported model gives the same outputs without winnow: with onnxruntime alone, in Node.js, in a browser.

    winnow export DIR && python -m benchmarks.export_elsewhere DIR

The check images of the export (check/pixels.npy) are predicted by onnxruntime in a new virtual environment that holds
onnxruntime, numpy and Pillow alone, by onnxruntime-node, and by onnxruntime-web (WebAssembly) in headless Chromium. The
logits are compared with those of this environment. Needs npm, node and chromium; the table names those that are missing
and skips what needs them. Packages are installed into .winnow/benchmarks/elsewhere.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chain import ROOT, markdown_table, write_results
from winnow.deploy.onnx_session import MODEL, open_session
from winnow.records import DeploymentCard

FOLDER = ROOT / ".winnow" / "benchmarks" / "elsewhere"
WEB_PACKAGE, NODE_PACKAGE = "onnxruntime-web@1.30.0", "onnxruntime-node@1.30.0"
BARE_SCRIPT = """
import json, sys, numpy, onnxruntime
pixels = numpy.load(sys.argv[1] + "/check/pixels.npy")
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx")
print(json.dumps({"version": onnxruntime.__version__, "logits": session.run(None, {"pixels": pixels})[0].tolist()}))
"""
READ_NPY = """
function readPixels(buffer) {
  const view = new DataView(buffer), start = 10 + view.getUint16(8, true);
  const header = new TextDecoder().decode(buffer.slice(10, start));
  const shape = header.match(/\\(([^)]*)\\)/)[1].split(",").filter((x) => x.trim()).map(Number);
  return [new Uint8Array(buffer.slice(start)), shape];
}
async function predict(ort, session, buffer) {
  const [data, shape] = readPixels(buffer), size = data.length / shape[0], logits = [];
  for (let index = 0; index < shape[0]; index++) {
    const pixels = new ort.Tensor("uint8", data.slice(index * size, (index + 1) * size), [1, ...shape.slice(1)]);
    logits.push(Array.from((await session.run({ pixels })).logits.data));
  }
  return logits;
}
"""
NODE_SCRIPT = (
    READ_NPY
    + """
const ort = require("onnxruntime-node"), fs = require("fs"), folder = process.argv[2];
(async () => {
  const session = await ort.InferenceSession.create(folder + "/model.onnx");
  const file = fs.readFileSync(folder + "/check/pixels.npy");
  const buffer = file.buffer.slice(file.byteOffset, file.byteOffset + file.byteLength);
  console.log(JSON.stringify({ version: "onnxruntime-node", logits: await predict(ort, session, buffer) }));
})();
"""
)
PAGE_HTML = (
    '<!doctype html><script src="/node_modules/onnxruntime-web/dist/ort.wasm.min.js"></script><script>'
    + READ_NPY
    + """
(async () => {
  const result = {};
  try {
    ort.env.wasm.wasmPaths = "/node_modules/onnxruntime-web/dist/";
    ort.env.wasm.numThreads = 1;
    const session = await ort.InferenceSession.create("/export/model.onnx", { executionProviders: ["wasm"] });
    const buffer = await (await fetch("/export/check/pixels.npy")).arrayBuffer();
    result.version = navigator.userAgent;
    result.logits = await predict(ort, session, buffer);
  } catch (error) { result.error = String(error); }
  await fetch("/result", { method: "POST", body: JSON.stringify(result) });
})();
</script>"""
)


def main(folder: Path) -> None:
    """Compare the outputs of each environment with those of this one and write the table."""
    pixels_NHWC = np.load(folder / "check" / "pixels.npy", allow_pickle=False)
    expected_NC = open_session(folder / MODEL).run(None, {"pixels": pixels_NHWC})[0]
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    shutil.copytree(folder, FOLDER / "export")
    environments = {"a bare environment": _run_bare, "Node.js": _run_node, "a browser": _run_browser}
    rows = [_compare(name, run(), expected_NC) for name, run in environments.items()]
    card = DeploymentCard.read(folder)
    conditions = (
        f"{card.name} ({card.precision}) of {len(card.classes)} classes, {len(pixels_NHWC)} images of "
        f"{card.image_size} pixels (random ones unless candidates were exported). "
        f"Largest difference: of logits, whose largest absolute value is {np.abs(expected_NC).max():.1f}."
    )
    write_results("export_elsewhere", conditions, {"rows": rows}, markdown_table(rows))


def _compare(environment: str, result: dict[str, Any], expected_NC: np.ndarray) -> dict[str, str]:
    row = {"where": environment, "with": result.get("version", ""), "same class": "-", "largest difference": "-"}
    if "missing" in result:
        return row | {"with": result["missing"]}
    logits_NC = np.array(result["logits"], dtype=np.float32)
    same = int((logits_NC.argmax(1) == expected_NC.argmax(1)).sum())
    return row | {
        "same class": f"{same} of {len(expected_NC)}",
        "largest difference": f"{np.abs(logits_NC - expected_NC).max():.2g}",
    }


def _run_bare() -> dict[str, Any]:
    """Return the version and logits of onnxruntime in a new virtual environment."""
    venv = FOLDER / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = venv / "bin" / "python"
    packages = ("onnxruntime", "numpy", "pillow")
    subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], check=True)
    result = json.loads(_output([str(python), "-I", "-c", BARE_SCRIPT, str(FOLDER / "export")]))
    prediction = _output([str(python), "-I", str(FOLDER / "export" / "predict.py"), str(_write_photo())])
    label = prediction.split(chr(9), 1)[1].strip()
    result["version"] = f"onnxruntime {result['version']}; predict.py: {label!r}"
    return dict(result)


def _write_photo() -> Path:
    from PIL import Image

    path = FOLDER / "photo.png"
    Image.fromarray(np.load(FOLDER / "export" / "check" / "pixels.npy")[0]).save(path)
    return path


def _run_node() -> dict[str, Any]:
    """Return the version and logits of onnxruntime-node."""
    if not _are_installed("npm", "node"):
        return {"missing": "npm or node is not installed"}
    _npm_install(NODE_PACKAGE)
    (FOLDER / "answer.cjs").write_text(NODE_SCRIPT, encoding="utf-8")
    result = json.loads(_output(["node", "answer.cjs", "export"]))
    result["version"] = f"{NODE_PACKAGE.replace('@', ' ')}, node {_output(['node', '--version']).strip()}"
    return dict(result)


def _run_browser() -> dict[str, Any]:
    """Return the version and logits of onnxruntime-web in Chromium. Raises RuntimeError if it sends no logits."""
    if not _are_installed("npm", "chromium"):
        return {"missing": "npm or chromium is not installed"}
    _npm_install(WEB_PACKAGE)
    (FOLDER / "page.html").write_text(PAGE_HTML, encoding="utf-8")
    result: dict[str, Any] = {}
    received = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_POST(self) -> None:
            result.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            received.set()

        def log_message(self, *_arguments: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(FOLDER))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={FOLDER / 'profile'}"]
        page = f"http://127.0.0.1:{server.server_port}/page.html"
        browser = subprocess.Popen(["chromium", *options, page], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        received.wait(120)
        browser.terminate()
        browser.wait()
        server.shutdown()
    if "logits" not in result:
        raise RuntimeError(f"the browser returned no logits: {result.get('error', 'no reply within 120 seconds')}")
    version = re.search(r"Chrome/([\d.]+)", result["version"])
    package = WEB_PACKAGE.replace("@", " ")
    result["version"] = f"{package} (WebAssembly), Chromium {version[1] if version else '?'}"
    return result


def _are_installed(*programs: str) -> bool:
    return all(shutil.which(program) for program in programs)


def _npm_install(package: str) -> None:
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
    subprocess.run(["npm", "install", *options, package], cwd=FOLDER, check=True)


def _output(command: list[str]) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {process.stderr.strip()[-500:]}")
    return process.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
