"""An exported model answers the same without winnow: in a bare environment, in Node.js and in a browser.

    winnow export DIR && python -m benchmarks.export_elsewhere DIR

The check images of the export (check/pixels.npy) are answered by onnxruntime in a fresh virtual environment that holds
onnxruntime, numpy and Pillow alone, by onnxruntime-node, and by onnxruntime-web (WebAssembly) in headless Chromium, and
compared with what this environment answers. Needs npm, node and chromium; what is not there is named and left out.
Packages are fetched into .winnow/benchmarks/elsewhere.
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

from benchmarks.chain import ROOT, leave, markdown
from winnow.deploy.onnx_session import MODEL, open_session
from winnow.records import DeploymentCard

FOLDER = ROOT / ".winnow" / "benchmarks" / "elsewhere"
WEB, NODE = "onnxruntime-web@1.30.0", "onnxruntime-node@1.30.0"
BARE = """
import json, sys, numpy, onnxruntime
pixels = numpy.load(sys.argv[1] + "/check/pixels.npy")
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx")
print(json.dumps({"version": onnxruntime.__version__, "logits": session.run(None, {"pixels": pixels})[0].tolist()}))
"""
READ_NPY = """
function pixelsOf(buffer) {
  const view = new DataView(buffer), start = 10 + view.getUint16(8, true);
  const header = new TextDecoder().decode(buffer.slice(10, start));
  const shape = header.match(/\\(([^)]*)\\)/)[1].split(",").filter((x) => x.trim()).map(Number);
  return [new Uint8Array(buffer.slice(start)), shape];
}
async function answer(ort, session, buffer) {
  const [data, shape] = pixelsOf(buffer), size = data.length / shape[0], logits = [];
  for (let at = 0; at < shape[0]; at++) {
    const one = new ort.Tensor("uint8", data.slice(at * size, (at + 1) * size), [1, ...shape.slice(1)]);
    logits.push(Array.from((await session.run({ pixels: one })).logits.data));
  }
  return logits;
}
"""
ON_NODE = (
    READ_NPY
    + """
const ort = require("onnxruntime-node"), fs = require("fs"), folder = process.argv[2];
(async () => {
  const session = await ort.InferenceSession.create(folder + "/model.onnx");
  const file = fs.readFileSync(folder + "/check/pixels.npy");
  const buffer = file.buffer.slice(file.byteOffset, file.byteOffset + file.byteLength);
  console.log(JSON.stringify({ version: "onnxruntime-node", logits: await answer(ort, session, buffer) }));
})();
"""
)
PAGE = (
    '<!doctype html><script src="/node_modules/onnxruntime-web/dist/ort.wasm.min.js"></script><script>'
    + READ_NPY
    + """
(async () => {
  const told = {};
  try {
    ort.env.wasm.wasmPaths = "/node_modules/onnxruntime-web/dist/";
    ort.env.wasm.numThreads = 1;
    const session = await ort.InferenceSession.create("/export/model.onnx", { executionProviders: ["wasm"] });
    const buffer = await (await fetch("/export/check/pixels.npy")).arrayBuffer();
    told.version = navigator.userAgent;
    told.logits = await answer(ort, session, buffer);
  } catch (error) { told.error = String(error); }
  await fetch("/told", { method: "POST", body: JSON.stringify(told) });
})();
</script>"""
)


def main(folder: Path) -> None:
    """Compare and write the table."""
    pixels = np.load(folder / "check" / "pixels.npy", allow_pickle=False)
    expected = open_session(folder / MODEL).run(None, {"pixels": pixels})[0]
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    shutil.copytree(folder, FOLDER / "export")
    environments = {"a bare environment": _bare, "Node.js": _on_node, "a browser": _in_browser}
    rows = [_compared(where, act(), expected) for where, act in environments.items()]
    card = DeploymentCard.read(folder)
    note = (
        f"{card.name} ({card.precision}) of {len(card.classes)} classes, {len(pixels)} images of "
        f"{card.image_size} pixels, random unless candidates were exported. "
        f"Largest difference: of logits, whose largest is {np.abs(expected).max():.1f}."
    )
    leave("export_elsewhere", note, {"rows": rows}, markdown(rows))


def _compared(where: str, told: dict[str, Any], expected: np.ndarray) -> dict[str, str]:
    row = {"where": where, "with": told.get("version", ""), "same class": "-", "largest difference": "-"}
    if "absent" in told:
        return row | {"with": told["absent"]}
    logits = np.array(told["logits"], dtype=np.float32)
    same = int((logits.argmax(1) == expected.argmax(1)).sum())
    return row | {
        "same class": f"{same} of {len(expected)}",
        "largest difference": f"{np.abs(logits - expected).max():.2g}",
    }


def _bare() -> dict[str, Any]:
    at = FOLDER / "venv"
    subprocess.run([sys.executable, "-m", "venv", at], check=True)
    python = at / "bin" / "python"
    packages = ("onnxruntime", "numpy", "pillow")
    subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], check=True)
    told = json.loads(_output([str(python), "-I", "-c", BARE, str(FOLDER / "export")]))
    shown = _output([str(python), "-I", str(FOLDER / "export" / "predict.py"), str(_photo())])
    told["version"] = f"onnxruntime {told['version']}; predict.py: {shown.split(chr(9), 1)[1].strip()!r}"
    return dict(told)


def _photo() -> Path:
    from PIL import Image

    path = FOLDER / "photo.png"
    Image.fromarray(np.load(FOLDER / "export" / "check" / "pixels.npy")[0]).save(path)
    return path


def _on_node() -> dict[str, Any]:
    if not _has("npm", "node"):
        return {"absent": "npm or node is not there"}
    _npm(NODE)
    (FOLDER / "answer.cjs").write_text(ON_NODE, encoding="utf-8")
    told = json.loads(_output(["node", "answer.cjs", "export"]))
    told["version"] = f"{NODE.replace('@', ' ')}, node {_output(['node', '--version']).strip()}"
    return dict(told)


def _in_browser() -> dict[str, Any]:
    if not _has("npm", "chromium"):
        return {"absent": "npm or chromium is not there"}
    _npm(WEB)
    (FOLDER / "page.html").write_text(PAGE, encoding="utf-8")
    told: dict[str, Any] = {}
    arrived = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_POST(self) -> None:
            told.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()
            arrived.set()

        def log_message(self, *_arguments: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(FOLDER))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={FOLDER / 'profile'}"]
        page = f"http://127.0.0.1:{server.server_port}/page.html"
        browser = subprocess.Popen(["chromium", *options, page], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        arrived.wait(120)
        browser.terminate()
        browser.wait()
        server.shutdown()
    if "logits" not in told:
        raise RuntimeError(f"the browser did not answer: {told.get('error', 'no word in two minutes')}")
    version = re.search(r"Chrome/([\d.]+)", told["version"])
    told["version"] = f"{WEB.replace('@', ' ')} (WebAssembly), Chromium {version[1] if version else '?'}"
    return told


def _has(*programs: str) -> bool:
    return all(shutil.which(program) for program in programs)


def _npm(package: str) -> None:
    quiet = ["--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
    subprocess.run(["npm", "install", *quiet, package], cwd=FOLDER, check=True)


def _output(command: list[str]) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
