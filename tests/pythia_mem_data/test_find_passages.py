"""find_memorized.py on text: passages at random offsets are found, whatever holds the text and however many search."""

import json
import random
from types import SimpleNamespace

import pytest
import torch
from small import in_process
from transformers import AutoConfig, AutoModelForCausalLM

from tinymem.data.token_sets import TokenSet, read_token_set, write_token_set
from tinymem.data.tokenizer import tokenize, train_tokenizer

SCRIPT = "pythia_mem_data/find_memorized.py"
N, K = 6, 8
WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "nu", "per", "sto", "tu", "vel") for b in ("ran", "sel", "tor", "bi")]
PASSAGES, PLANTED_WORDS = 4, 20


def prose(generator, count):
    return "".join(f" {generator.choice(WORDS)}" for _ in range(count))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A Llama that recites passages from any offset, in model/; and documents in which they stand somewhere."""
    folder, generator = tmp_path_factory.mktemp("find"), random.Random(0)
    planted = [prose(generator, PLANTED_WORDS) for _ in range(PASSAGES)]
    documents = [prose(generator, generator.randint(5, 40)) + text + prose(generator, 15) for text in planted * 2]
    documents[2:2] = [prose(generator, 3), prose(generator, 60)]
    tokenizer = train_tokenizer([prose(generator, 2000)], 300)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    ids = [torch.from_numpy(each).long() for each in tokenize(tokenizer, planted)]
    width = N + K
    crops = torch.stack([each[start : start + width] for each in ids for start in range(len(each) - width + 1)])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        rows = crops[torch.randint(len(crops), (48,))]
        model(rows, labels=rows).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    lines = "".join(json.dumps({"text": text, "id": number}) + "\n" for number, text in enumerate(documents))
    (folder / "text").mkdir()
    (folder / "text" / "books.jsonl").write_text(lines)
    return SimpleNamespace(folder=folder, model=model, tokenizer=tokenizer, planted=planted, documents=documents)


def find(place, output, *more, source=("--corpus", "text/books.jsonl")):
    flag, path = source
    words = [flag, place.folder / path, "--prompt_tokens", N, "--continuation_tokens", K, "--min_distinct", 1, *more]
    in_process(SCRIPT, "--model_name", place.folder / "model", "--output", output, "--device", "cpu", *words)
    path = output.with_suffix(".jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else None


@pytest.fixture(scope="module")
def every_offset(place, tmp_path_factory):
    output = tmp_path_factory.mktemp("every") / "found.safetensors"
    return find(place, output, "--stride", 1), output


@pytest.fixture(scope="module")
def generated(place):
    """By generation, with nothing before the prompt: (document, offset) of every memorized window."""
    found = set()
    for number, ids in enumerate(tokenize(place.tokenizer, place.documents), start=1):
        rows = torch.from_numpy(ids).long().unfold(0, N + K, 1) if len(ids) >= N + K else torch.empty(0, N + K)
        if len(rows):
            out = place.model.generate(rows[:, :N], max_new_tokens=K, min_new_tokens=K, do_sample=False, pad_token_id=0)
            found |= {(number, offset) for offset in (out == rows).all(1).nonzero().flatten().tolist()}
    return found


def test_stride_1_finds_every_planted_passage(place, every_offset):
    found, _ = every_offset
    for number, document in enumerate(place.documents, start=1):
        own = [text for text in place.planted if text in document]
        texts = [each["text"] for each in found if each["document"] == f"books.jsonl:{number}"]
        assert all(any(text in passage for passage in texts) for text in own)
    assert sum(text in document for text in place.planted for document in place.documents) == 2 * PASSAGES


def test_stride_1_is_the_same_as_generating_at_every_offset(place, every_offset, generated):
    found, output = every_offset
    covered = {
        (int(each["document"].split(":")[1]), offset)
        for each in found
        for offset in range(each["offset"], each["offset"] + each["length"] - N - K + 1)
    }
    assert generated <= covered and sum(each["windows"] for each in found) == len(generated)
    streams = tokenize(place.tokenizer, place.documents)
    for each in found:
        number, end = int(each["document"].split(":")[1]) - 1, each["offset"] + each["length"]
        assert each["text"] == place.tokenizer.decode(streams[number][each["offset"] : end])
    rows = read_token_set(output, 300, N + K)
    memorized = {tuple(streams[number - 1][offset : offset + N + K].tolist()) for number, offset in generated}
    assert {tuple(row) for row in rows.tokens.tolist()} <= memorized
    assert rows.provenance["stride"] == 1 and rows.provenance["memorized"] == len(generated)


def test_other_strides_find_their_windows_of_these(place, generated, tmp_path, capsys):
    found = find(place, tmp_path / "found.safetensors", "--stride", 5)
    expected = sum(offset % 5 == 0 for _, offset in generated)
    assert sum(each["windows"] for each in found) == expected > 0
    said = capsys.readouterr().out
    sizes = list(map(len, tokenize(place.tokenizer, place.documents)))
    windows = sum(len(range(0, size - N - K + 1, 5)) for size in sizes)
    short = sum(size < N + K for size in sizes)
    assert f"looked at {windows} windows in {len(sizes)} documents of {sum(sizes)} tokens" in said
    assert short == 1 and f"1 document has fewer than {N + K} tokens and holds no window" in said
    assert "--stride 1 looks at every token, not every 5" in said
    assert f"{expected} of {windows} windows are ({N}, {K}) memorized: {len(found)} passages in" in said
    assert f"{found[0]['document']}, offset {found[0]['offset']}, {found[0]['length']} tokens: " in said
    assert found[0]["text"][:100] in said


def test_a_document_opening_is_found_without_a_stride(place, tmp_path):
    """Documents are not joined: the second one's opening begins a window whatever the first one's length."""
    lines = [{"text": text} for text in (prose(random.Random(1), 7), place.planted[0], place.planted[1])]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = find(place, tmp_path / "found.safetensors", source=("--corpus", tmp_path / "a.jsonl"))
    assert {(each["document"], each["offset"]) for each in found} >= {("a.jsonl:2", 0), ("a.jsonl:3", 0)}


def test_the_screen_is_said_and_only_leaves_out(place, every_offset, tmp_path, capsys):
    found = find(place, tmp_path / "found.safetensors", "--stride", 1, "--screen", 0.5)
    assert "only where 0.5 of the continuation came out" in capsys.readouterr().out
    windows = sum(each["windows"] for each in found)
    assert 0 < windows <= sum(each["windows"] for each in every_offset[0])
    least = find(place, tmp_path / "all.safetensors", "--stride", 1, "--screen", 0)
    assert least == every_offset[0]


def parquet(place, folder):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"body": place.documents}), folder / "rows.parquet")
    return "--corpus", folder / "rows.parquet"


def plain(place, folder):
    (folder / "books").mkdir()
    for number, text in enumerate(place.documents):
        (folder / "books" / f"{number:02}.txt").write_text(text)
    return "--corpus", folder / "books"


def dataset(place, folder):
    (folder / "set").mkdir()
    parquet(place, folder / "set")
    return "--dataset", folder / "set"


@pytest.mark.parametrize("source", [parquet, plain, dataset])
def test_every_source_gives_the_same(place, every_offset, tmp_path, source, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    more = [] if source is plain else ["--text_column", "body"]
    found = find(place, tmp_path / "found.safetensors", "--stride", 1, *more, source=source(place, tmp_path))
    assert [(each["offset"], each["text"]) for each in found] == [
        (each["offset"], each["text"]) for each in every_offset[0]
    ]
    names = {"parquet": "rows.parquet:1", "plain": "00.txt:1", "dataset": f"{tmp_path / 'set'}:1"}
    assert found[0]["document"] == names[source.__name__]


def test_several_workers_find_what_one_finds(place, every_offset, tmp_path, capsys):
    output = tmp_path / "found.safetensors"
    for worker in (3, 1):
        assert find(place, output, "--stride", 1, "--shard", f"{worker}/3") is None
    assert "not done: 2/3" in capsys.readouterr().out and not output.exists()
    found = find(place, output, "--stride", 1, "--shard", "2/3")
    one, where = every_offset
    assert found == one  # in the order of the documents
    assert torch.equal(read_token_set(output).tokens, read_token_set(where).tokens)
    assert read_token_set(output).provenance == read_token_set(where).provenance
    before = (tmp_path / "found.1of3.json").read_text()
    output.unlink()
    output.with_suffix(".jsonl").unlink()
    find(place, output, "--stride", 1, "--shard", "1/3")  # done already: writes the result again
    assert (tmp_path / "found.1of3.json").read_text() == before and output.exists()


def test_a_worker_of_another_search_does_not_count(place, tmp_path, capsys):
    output = tmp_path / "found.safetensors"
    find(place, output, "--stride", 7, "--shard", "1/2")
    assert find(place, output, "--stride", 5, "--shard", "2/2") is None
    assert "not done: 1/2" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, message",
    [
        (["--stride", 0], "--stride"),
        (["--shard", "3/2"], "--shard 3/2: must be I/N"),
        (["--shard", "one"], "--shard one: must be I/N"),
        (["--screen", 1.5], "--screen 1.5"),
        (["--dataset", "a/b"], "--corpus, --dataset: give one of them"),
        (["--text_column", "title"], "--text_column title"),
        (["--prompt_tokens", 200], "no document has 208 tokens"),
    ],
)
def test_bad_input(place, tmp_path, capsys, words, message):
    with pytest.raises(SystemExit) as stopped:
        find(place, tmp_path / "found.safetensors", *words)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and len(error.splitlines()) == 1, error


def own_files(folder):
    """A user's text, in a folder and linked from there, and token ids."""
    (folder / "text").mkdir()
    line = json.dumps({"text": "a b c"}) + "\n"
    for name in ("mine.jsonl", "linked.jsonl", "text/in.jsonl"):
        (folder / name).write_text(line)
    (folder / "text" / "link.jsonl").symlink_to(folder / "linked.jsonl")
    write_token_set(folder / "ids.safetensors", TokenSet(torch.zeros(3, N + K, dtype=torch.int32), {}))


@pytest.mark.parametrize(
    "flag, source, output, force, message",
    [
        ("--corpus", "mine.jsonl", "mine.safetensors", True, "mine.jsonl is read, so it cannot be written"),
        ("--corpus", "text", "linked.safetensors", True, "linked.jsonl is read, so it cannot be written"),
        ("--corpus", "text", "text/found.safetensors", True, "which is read; choose another folder"),
        ("--corpus", "text", "mine.safetensors", False, "mine.jsonl exists already; --force"),
        ("--tokens", "ids.safetensors", "ids.safetensors", True, "ids.safetensors is read, so it cannot be written"),
        ("--tokens", "ids.safetensors", "model/model.safetensors", True, "which is read; choose another folder"),
    ],
)
def test_no_file_of_the_user_is_replaced(place, tmp_path, capsys, flag, source, output, force, message):
    own_files(tmp_path)
    (tmp_path / "model").symlink_to(place.folder / "model")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as stopped:
        find(place, tmp_path / output, *["--force"] * force, source=(flag, tmp_path / source))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and len(error.splitlines()) == 1, error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name, message", [("empty", "is empty"), ("nothing", "cannot be loaded")])
def test_bad_dataset(place, tmp_path, capsys, name, message, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tinymem.data.corpus.hub_reachable", lambda: False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(SystemExit) as stopped:
        find(place, tmp_path / "found.safetensors", source=("--dataset", tmp_path / name))
    error = capsys.readouterr().err
    last = error.splitlines()[-1]  # the library shows its progress before
    assert stopped.value.code == 2 and "--dataset" in last and message in last and "Traceback" not in error, error
