"""The server as a program: `python -m pytest_llmperf.origin --help`."""

from __future__ import annotations

import argparse
import contextlib
import gc
import resource
import signal
import sys

from pytest_llmperf.origin.server import Origin


def main() -> int:
    """Serve until SIGTERM, SIGINT or the parent's end. Returns the process's exit code."""
    options = _options()
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # some systems allow less than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    try:
        origin = Origin(options.ttft_ms / 1e3, options.itl_ms / 1e3, options.host, options.port)
    except (OSError, OverflowError, ValueError) as error:
        sys.stderr.write(f"cannot serve: {error}\n")
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit())
    sys.stdout.write(f"listening on {origin.url}\n")
    sys.stdout.flush()
    # Nothing here refers to itself in a circle, and a collection would hold up every stream.
    gc.disable()
    origin.serve(sys.stdin.fileno() if options.with_parent else None)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m pytest_llmperf.origin", description="An OpenAI-compatible server that answers on time."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0: any that is free")
    parser.add_argument("--ttft-ms", type=float, default=100, help="from a request's last byte to the first token")
    parser.add_argument("--itl-ms", type=float, default=10, help="from each token to the next")
    parser.add_argument("--with-parent", action="store_true", help="end also when the standard input does, a pipe")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
