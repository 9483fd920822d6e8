"""examples/serve.py: a server that answers from the compressed file."""

from __future__ import annotations

import importlib.util
import json
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from sparse24 import SparseLinear
from sparse24.commands.demo import sentences, transformer

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.fixture
def serve() -> Any:
    """examples/serve.py as a module."""
    path = Path(__file__).parents[2] / "examples" / "serve.py"
    spec = importlib.util.spec_from_file_location("serve", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ask(port: int, body: bytes) -> tuple[int, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", data=body)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.usefixtures("small")
def test_the_server_answers_from_the_compressed_file(serve: Any, tmp_path: Path) -> None:
    folder, file = transformer.model_folder(), tmp_path / "encoder.safetensors"
    report = serve.prepare(folder, file)
    assert not report.left
    encoder, tokenizer = serve.restore(folder, file)
    assert sum(isinstance(module, SparseLinear) for module in encoder.modules()) == 12
    server = serve.listen(encoder, tokenizer, port=0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        texts = [text for pair in sentences.PAIRS[:3] for text in pair]
        status, answer = ask(server.server_port, json.dumps({"sentences": texts}).encode())
        assert status == 200
        with torch.inference_mode():
            expected = encoder(transformer.tokens_of(tokenizer, texts))
        assert torch.allclose(torch.tensor(answer["embeddings"]), expected, atol=1e-6)
        for body in (b"{", b"[]", b'{"sentences": []}', b'{"sentences": [1]}'):
            status, answer = ask(server.server_port, body)
            assert status == 400
            assert "sentences" in answer["error"]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=20)
