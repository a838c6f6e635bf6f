"""fetch.py: files already here, files from a server, and files that are not what they should be."""

import hashlib
import http.server
import runpy
import threading
from functools import partial

import pytest
import torch
from small import ROOT, in_process

from tinymem.data.token_sets import read_token_set

SCRIPT = "pythia_mem_data/fetch.py"
MODELS = ("pythia-2.8b-deduped-v0", "pythia-6.9b-deduped")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """MemPi's layout with files of its shapes; their own SHA-256 stand in the script's table."""
    generator = torch.Generator().manual_seed(0)
    source = (ROOT / SCRIPT).read_text()
    for model in MODELS:
        path = tmp_path / "mempi" / model / "pile_bs0-100-dedup.pt"
        path.parent.mkdir(parents=True)
        torch.save(torch.randint(0, 50277, (505, 80), generator=generator), path)
        old = source.split(f'"{model}",')[2].split('"')[3]
        source = source.replace(old, hashlib.sha256(path.read_bytes()).hexdigest())
    torch.save(torch.randint(0, 50277, (2048, 128), generator=generator), path.with_name("pile_random_batch.pt"))
    script = tmp_path / "fetch.py"
    script.write_text(source)
    return script, tmp_path / "mempi", tmp_path / "out"


def test_conversion_and_a_second_time(folder, capsys):
    script, mempi, out = folder
    in_process(str(script), "--from", mempi, "--output_dir", out)
    for name, shape in ((MODELS[0], (505, 80)), (MODELS[1], (505, 80)), ("pile_random_batch", (2048, 128))):
        token_set = read_token_set(out / f"{name}.safetensors", 50277)
        assert tuple(token_set.tokens.shape) == shape and "Apache-2.0" in token_set.provenance["license"]
    original = torch.load(mempi / MODELS[1] / "pile_bs0-100-dedup.pt", weights_only=True)
    assert torch.equal(read_token_set(out / f"{MODELS[1]}.safetensors").tokens, original)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    in_process(str(script), "--from", mempi, "--output_dir", out)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert "there already" in capsys.readouterr().out


def test_from_a_server(folder):
    script, mempi, out = folder
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=mempi)
    handler.log_message = lambda *arguments: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        in_process(str(script), "--url", f"http://127.0.0.1:{server.server_port}", "--output_dir", out)
    finally:
        server.shutdown()
    assert len(list(out.iterdir())) == 3


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        in_process(*words)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "content, message",
    [
        (torch.zeros(505, 80), "float32 values"),
        (torch.zeros(505, 81, dtype=torch.long), r"has shape (505, 81), not (505, 80)"),
        (torch.full((505, 80), 50277), "token id 50277 is outside"),
    ],
)
def test_wrong_content(folder, capsys, content, message):
    script, mempi, out = folder
    path = mempi / MODELS[0] / "pile_bs0-100-dedup.pt"
    old = hashlib.sha256(path.read_bytes()).hexdigest()
    torch.save(content, path)
    assert f"not {old}" in refused(capsys, str(script), "--from", mempi, "--output_dir", out)
    script.write_text(script.read_text().replace(old, hashlib.sha256(path.read_bytes()).hexdigest()))
    assert message in refused(capsys, str(script), "--from", mempi, "--output_dir", out)
    assert not list(out.glob("*"))


def test_no_server_and_an_empty_folder(tmp_path, capsys):
    error = refused(capsys, SCRIPT, "--url", "http://127.0.0.1:9", "--output_dir", tmp_path)
    assert "cannot be fetched" in error and "--from FOLDER" in error
    assert "cannot be fetched" in refused(capsys, SCRIPT, "--url", "http://a b", "--output_dir", tmp_path)
    assert "none of MemPi's files" in refused(capsys, SCRIPT, "--from", tmp_path, "--output_dir", tmp_path)


def test_a_missing_file_that_it_writes_is_known():
    from tinymem.data.production import FETCHED

    scope = runpy.run_path(str(ROOT / SCRIPT))
    assert FETCHED == tuple(f"{source.name}.safetensors" for source in scope["SOURCES"])
