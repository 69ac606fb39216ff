"""Model folders and data files that try to run code, to hang, or to pass for something else.

Each maker gets a path to write to and the path of a canary: a file that appears if any of it is executed.
"""

import bz2
import gzip
import json
import lzma
import os
import pickle
import shutil
import socket
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tpo.config.base import SHIPPED_SEED_MODEL

HUGE = 1 << 30
"""Size of a file that is too large to read; sparse on disk."""


@dataclass(frozen=True)
class Hostile:
    """A folder or file, made hostile by a change to a sound one."""

    make: Callable[[Path, Path], object]
    """Changes the folder, or writes the file, at the first path; its payload touches the second."""
    message: str | None
    """Pattern of the error; None if it is accepted, since nothing in it can do harm."""
    loads: bool = True
    """Whether to try the real loaders on it too, past the check; not if they would take too much memory or time."""


class _Touch:
    """An object that touches the canary when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.canary}'",)


def pickled(canary: Path) -> bytes:
    """A pickle that touches the canary."""
    return pickle.dumps(_Touch(canary))


def zipped_pickle(path: Path, canary: Path) -> None:
    """The same in the format that torch writes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(canary))
        archive.writestr("archive/version", "3\n")


def code(canary: Path) -> str:
    """A Python module that touches the canary when imported, and answers any attribute lookup."""
    return (
        f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n"
        "class Custom:\n    from_pretrained = classmethod(lambda *_, **__: None)\ngenerate = Custom\n"
    )


def sound_model(folder: Path) -> Path:
    """A copy of the shipped seed model."""
    shutil.copytree(SHIPPED_SEED_MODEL, folder)
    return folder


# --- changes to a model folder ----------------------------------------------------------------------------------------

Change = Callable[[Path, Path], object]


def both(*changes: Change) -> Change:
    """One change after another."""

    def change(folder: Path, canary: Path) -> None:
        for each in changes:
            each(folder, canary)

    return change


def with_pickle(name: str) -> Change:
    return lambda folder, canary: write(folder / name, pickled(canary))


def with_pickled_weights(folder: Path, canary: Path) -> Path:
    """Weights as a pickle, with the safetensors removed."""
    write(folder / "pytorch_model.bin", pickled(canary))
    return folder.parent / "away.safetensors"


def with_file(name: str, content: bytes = b"\x00") -> Change:
    return lambda folder, _: write(folder / name, content)


def with_code(name: str) -> Change:
    return lambda folder, canary: write(folder / name, code(canary).encode())


def with_setting(name: str, **values: object) -> Change:
    """Values in a config, with the module that an `auto_map` names, both in the folder and in a hub repository of that
    name."""
    return lambda folder, _: change_json(folder / name, **values)


def with_code_and_setting(name: str, **values: object) -> Change:
    def change(folder: Path, canary: Path) -> None:
        write(folder / "custom.py", code(canary).encode())
        change_json(folder / name, **values)

    return change


def with_template(text: str, name: str = "chat_template.jinja") -> Change:
    return lambda folder, canary: write(folder / name, text.replace("CANARY", str(canary)).encode())


def with_link(name: str, target: str | Path) -> Change:
    def change(folder: Path, canary: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def with_pipe(name: str) -> Change:
    def change(folder: Path, canary: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def with_socket(folder: Path, canary: Path) -> None:
    here = Path.cwd()
    os.chdir(folder)  # a socket's path must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("s")
    finally:
        os.chdir(here)


def with_huge(name: str) -> Change:
    def change(folder: Path, canary: Path) -> None:
        with (folder / name).open("wb") as file:
            file.write(b'{"a": "')
            file.truncate(HUGE)

    return change


def with_header(header: object, *, data: bytes = b"\0" * 8, length: int | None = None) -> Change:
    """Weights with this header, given as an object or as raw text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = (len(text) if length is None else length).to_bytes(8, "little") + text + data
    return lambda folder, _: write(folder / "model.safetensors", content)


def tensor(dtype: str = "F32", shape: object = (2,), begin: object = 0, end: object = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def with_index(places: object, *, keep: bool = False) -> Change:
    """Weights in `part.safetensors`, with an index that says where tensors are."""

    def change(folder: Path, canary: Path) -> None:
        shutil.copyfile(folder / "model.safetensors", folder / "part.safetensors")
        write(folder.parent / "outside.safetensors", (folder / "part.safetensors").read_bytes())
        if not keep:
            (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))

    return change


def with_tokenizer_pattern(pattern: str) -> Change:
    """A tokenizer that first splits with this pattern."""
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return lambda folder, _: change_json(folder / "tokenizer.json", pre_tokenizer=split)


def as_hub_snapshot(folder: Path, canary: Path) -> None:
    """The folder as laid out in the model hub's cache: links to `blobs`."""
    model = folder.parent / "models--a--b"
    (model / "blobs").mkdir(parents=True)
    (model / "snapshots").mkdir()
    for path in list(folder.iterdir()):
        path.rename(model / "blobs" / path.name)
        path.symlink_to(f"../../blobs/{path.name}")
    folder.rename(model / "snapshots" / "0123")
    folder.symlink_to(model / "snapshots" / "0123")


def with_published_company(folder: Path, canary: Path) -> None:
    """What published folders contain besides the model, including pickles and code in sub-folders."""
    for name in ("README.md", "LICENSE", ".gitattributes", "USE_POLICY.md", "scores.json", "merges.txt", "figure.png"):
        write(folder / name, b"words")
    zipped_pickle(write(folder / "original" / "consolidated.00.pth", b""), canary)
    write(folder / "original" / "params.json", b"{}")
    for name in ("original/tokenizer.model", "onnx/model.onnx", "metal/model.bin", "pytorch_model.bin/0", "runs/a.pkl"):
        write(folder / name, pickled(canary))
    for name in ("inference/modeling.py", "original/custom.py", ".git/hooks/post-checkout", ".cache/x.py"):
        write(folder / name, code(canary).encode())


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(content)
    return path


def change_json(path: Path, **values: object) -> None:
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(found | values))


AUTO_MAP = {
    "AutoModelForCausalLM": "custom.Custom",
    "AutoTokenizer": ["custom.Custom", None],
    "AutoConfig": "custom.Custom",
}
FROM_HUB = {"AutoModelForCausalLM": "org/repo--custom.Custom", "AutoTokenizer": ["org/repo--custom.Custom", None]}
CONFIGS = (
    "config.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json",
    "processor_config.json", "video_preprocessor_config.json", "image_processor_config.json",
)  # fmt: skip
DEEP = b"[" * 100_000
POPEN = ".popen('touch CANARY').read() }}"
LOOPS = "{% for a in range(99999) %}" * 3 + "{% set b = a %}" + "{% endfor %}" * 3

MODEL_FOLDERS: dict[str, Hostile] = {
    **{
        f"a pickle named {name}": Hostile(with_pickle(name), rf"contains pickles \({name}\), which run .*delete them")
        for name in (
            "pytorch_model.bin", "training_args.bin", "model.pt", "optimizer.PTH", "last.ckpt", "rng.pkl", "a.pickle",
            "scaler.joblib", "rows.npy", "rows.npz", "model.nemo",
        )
    },
    "a pickle as torch zips it": Hostile(
        lambda folder, canary: zipped_pickle(folder / "pytorch_model.bin", canary), r"pickles \(pytorch_model.bin\)"
    ),
    "pickles alone": Hostile(
        lambda folder, canary: (folder / "model.safetensors").rename(with_pickled_weights(folder, canary)),
        r"pickles \(pytorch_model.bin\), which run code when loaded: convert",
    ),
    "a pickle that calls itself safetensors": Hostile(with_pickle("model.safetensors"), "is not a safetensors file"),
    "a pickle that calls itself a config": Hostile(with_pickle("config.json"), "config.json is not readable"),
    "a pickle that calls itself a tokenizer": Hostile(with_pickle("tokenizer.json"), "tokenizer.json is not readable"),
    **{
        f"code named {name}": Hostile(with_code(name), rf"contains code \({name}\)")
        for name in ("modeling.py", "tokenizer.pyc", "native.so", "native.so.1", "native.DLL")
    },
    **{
        f"code asked for in {name}": Hostile(
            with_code_and_setting(name, auto_map=AUTO_MAP), rf"contains code \(auto_map in {name}, custom.py\)"
        )
        for name in CONFIGS
    },
    "code asked for by a section": Hostile(
        with_setting("config.json", text_config={"deeper": [{"auto_map": AUTO_MAP}]}), r"\(auto_map in config.json\)"
    ),
    "code of another repository": Hostile(with_setting("config.json", auto_map=FROM_HUB), "auto_map in config.json"),
    "a tokenizer of another repository": Hostile(
        with_setting("tokenizer_config.json", auto_map=FROM_HUB), r"\(auto_map in tokenizer_config.json\)"
    ),
    "its own generate function": Hostile(
        with_code("custom_generate/generate.py"), r"contains code \(custom_generate\)"
    ),
    "a way of generating by name": Hostile(
        with_setting("generation_config.json", custom_generate="org/repo"), "custom_generate in generation_config.json"
    ),
    "its own pipeline": Hostile(
        with_code_and_setting("config.json", custom_pipelines={"text-generation": {"impl": "custom.Custom"}}),
        r"\(custom.py, custom_pipelines in config.json\)",
    ),
    "attention from the hub": Hostile(
        with_setting("config.json", _attn_implementation="kernels-community/flash-attn"),
        "code elsewhere .*kernels-community/flash-attn.*expected a name such as sdpa",
    ),
    "attention from the hub, newer": Hostile(
        with_setting("config.json", attn_implementation="paged|org/repo@main:attend"), "code elsewhere"
    ),
    "attention from the hub, by section": Hostile(
        with_setting("config.json", text_config={"attn_implementation": {"": "org/repo"}}), "code elsewhere"
    ),
    "experts from the hub": Hostile(
        with_setting("config.json", _experts_implementation="org/repo"), "code elsewhere"
    ),
    "kernels from the hub": Hostile(
        with_setting("config.json", use_kernels=True, kernel_config={"RMSNorm": "org/repo:Norm"}), "elsewhere"
    ),
    "another model behind this one": Hostile(
        with_setting("config.json", speculators_config={"verifier": {"name_or_path": "org/repo"}}),
        r"weights or code elsewhere \(speculators_config\)",
    ),
    "weights elsewhere": Hostile(
        with_setting("config.json", transformers_weights="../outside.safetensors"), "elsewhere .transformers_weights"
    ),
    "weights quantized as pickles": Hostile(
        with_setting("config.json", quantization_config={"quant_method": "torchao", "quant_type": {"default": {}}}),
        "quant_method 'torchao', expected one of awq, ",
    ),
    "weights quantized by who knows what": Hostile(
        with_setting("config.json", text_config={"quantization_config": {"quant_method": ["fp8"]}}), "quant_method"
    ),
    "a vocabulary without end": Hostile(
        with_setting("tokenizer_config.json", vocab_file="/dev/zero"), "names a file elsewhere .*/dev/zero", loads=False
    ),
    "an adapter": Hostile(
        both(
            with_setting("adapter_config.json", base_model_name_or_path="org/repo", peft_type="LORA"),
            with_pickle("adapter_model.safetensors"),
        ),
        r"contains an adapter \(adapter_config.json, adapter_model.safetensors\).*merge",
    ),
    **{
        f"other weights, {name}": Hostile(with_pickle(name), rf"formats that we do not load \({name}\)")
        for name in ("tf_model.h5", "flax_model.msgpack", "model.onnx", "model.gguf", "rust_model.ot", "saved_model.pb")
    },
    **{
        f"an archive, {name}": Hostile(with_pickle(name), rf"contains archives \({name}\)")
        for name in ("model.zip", "model.tar", "model.tar.gz", "model.7z")
    },
    "a link out of the folder": Hostile(with_link("README.md", "/etc/hostname"), "README.md is a link to /etc/"),
    "a link to what does not end": Hostile(
        with_link("tokenizer.json", "/dev/zero"), "tokenizer.json is a link to /dev/zero", loads=False
    ),
    "a link to a folder": Hostile(with_link("more", "/etc"), "more is a link to /etc"),
    "a link to itself": Hostile(with_link("config.json", "config.json"), "config.json is a link"),
    "a link to nowhere": Hostile(with_link("model.safetensors", "nowhere"), "model.safetensors is a link"),
    "a link deep below": Hostile(
        both(with_file("a/b/c"), with_link("a/b/d", "/etc/hostname")),
        "a/b/d is a link to /etc/hostname",
    ),
    "a pipe for a config": Hostile(with_pipe("config.json"), "config.json is neither a file nor a folder", loads=False),
    "a pipe next to it": Hostile(with_pipe("README.md"), "README.md is neither a file nor a folder"),
    "a socket": Hostile(with_socket, "/s is neither a file nor a folder"),
    "ten thousand files": Hostile(
        lambda folder, _: [write(folder / "many" / str(i), b"") for i in range(10_001)],
        "more than 10000 files",
        loads=False,
    ),
    "a header that says it is huge": Hostile(
        with_header({"a": tensor()}, length=1 << 62), "not a safetensors file: its header would have"
    ),
    "a header beyond the file": Hostile(with_header({"a": tensor()}, length=500), "its header would have 500 bytes"),
    "a header beyond the format's limit": Hostile(
        both(
            with_header(b"{}", data=b"", length=100_000_001),
            lambda folder, _: os.truncate(folder / "model.safetensors", 100_000_100),
        ),
        "its header would have 100000001 bytes",
    ),
    "an empty file": Hostile(with_file("model.safetensors", b""), "not a safetensors file"),
    "a header of a list": Hostile(with_header([1]), "its header is not a JSON object"),
    "a header nested deep": Hostile(with_header(DEEP), "not a safetensors file"),
    "tensors that overlap": Hostile(
        with_header({"a": tensor(), "b": tensor(begin=4, end=12)}, data=b"\0" * 12), "b begins at byte 4, expected 8"
    ),
    "tensors with a gap": Hostile(
        with_header({"a": tensor(), "b": tensor(begin=12, end=20)}, data=b"\0" * 20), "b begins at byte 12, expected 8"
    ),
    "a tensor beyond the file": Hostile(with_header({"a": tensor(shape=[200], end=800)}), "expected .*truncated"),
    "a tensor before the file": Hostile(with_header({"a": tensor(begin=-8, end=0)}), "does not fill bytes -8 to 0"),
    "a tensor larger than its bytes": Hostile(with_header({"a": tensor(shape=[1 << 40])}), "does not fill"),
    "a tensor whose size overflows": Hostile(with_header({"a": tensor(shape=[1 << 32, 1 << 32, 4])}), "does not fill"),
    "a tensor of another type": Hostile(with_header({"a": tensor("F64")}), "does not fill"),
    "a tensor of no type": Hostile(with_header({"a": tensor("OBJECT")}), "no valid type, shape and offsets"),
    "a tensor of shape yes": Hostile(with_header({"a": tensor(shape=[True, 2])}), "does not fill"),
    "a tensor twice": Hostile(
        with_header(b'{"a": %b, "a": %b}' % ((json.dumps(tensor()).encode(),) * 2)), "names something twice"
    ),
    "weights cut off": Hostile(
        lambda folder, _: os.truncate(folder / "model.safetensors", 1000), "its header would have|truncated"
    ),
    "bytes after the weights": Hostile(with_header({"a": tensor()}, data=b"\0" * 8 + b"PK\3\4"), "bytes, expected"),
    "a lying shard next to it": Hostile(with_file("consolidated.safetensors"), "consolidated.safetensors is not a"),
    "an index that leaves the folder": Hostile(
        with_index({"a": "../outside.safetensors"}), r"\.\./outside.safetensors is missing: .* expected a file in"
    ),
    "an index of the whole machine": Hostile(with_index({"a": "/etc/hostname"}), "/etc/hostname is missing"),
    "an index of a shard that lacks": Hostile(with_index({"a": "gone.safetensors"}), "gone.safetensors is missing"),
    "an index of tensors that lack": Hostile(with_index({"a": "part.safetensors"}), "tensors that its files lack: a;"),
    "an index of nothing": Hostile(with_index({}), "has no weight_map"),
    "an index of numbers": Hostile(with_index({"a": 7}), "7 is missing"),
    "two models in one": Hostile(with_index({"a": "part.safetensors"}, keep=True), "unclear which is the model"),
    "a config nested deep": Hostile(with_file("config.json", DEEP), "config.json is not readable JSON"),
    "a config of a gigabyte": Hostile(
        with_huge("config.json"), "config.json has 1073741824 bytes, expected at most 4194304", loads=False
    ),
    "a tokenizer nested deep": Hostile(
        with_file("tokenizer.json", b'{"a":' * 100_000), "tokenizer.json is not readable JSON"
    ),
    "a tokenizer of a gigabyte": Hostile(
        with_huge("tokenizer.json"), "tokenizer.json has 1073741824 bytes, expected", loads=False
    ),
    "a template of a gigabyte": Hostile(
        with_huge("chat_template.jinja"), "chat_template.jinja has 1073741824 bytes, expected", loads=False
    ),
    "a config that is not text": Hostile(with_file("config.json", b'{"a": "\xff\xfe"}'), "config.json is not readable"),
    "a template that climbs from a text": Hostile(
        with_template("{{ ''.__class__.__mro__[1].__subclasses__()[0].__init__.__globals__['os']" + POPEN),
        r"chat template of .* reaches into Python \(__",
    ),
    "a template that climbs from a function": Hostile(
        with_template("{{ cycler.__init__.__globals__.os" + POPEN), "reaches into Python"
    ),
    "a template that climbs by filters": Hostile(
        with_template("{{ (lipsum|attr('__globals__'))['os']" + POPEN), "reaches into Python"
    ),
    "a template that climbs by another name": Hostile(
        with_template("{{ lipsum['__glo' ~ 'bals__'].os" + POPEN), "does more than render a chat, SecurityError|reaches"
    ),
    "a template that climbs in a branch": Hostile(
        with_template("{% if messages|length > 99 %}{{ self.__init__.__globals__ }}{% endif %}x"), "reaches into Python"
    ),
    "a template that climbs by a format": Hostile(
        with_template("{{ '{0.__class__.__init__}'.format(messages) }}"), None
    ),
    "a template that climbs, next to another": Hostile(
        with_template("{{ joiner.__init__.__globals__.os" + POPEN, "additional_chat_templates/tool_use.jinja"),
        "reaches into Python",
    ),
    "a template that climbs, in a config": Hostile(
        lambda folder, canary: change_json(
            folder / "tokenizer_config.json",
            chat_template=[{"name": "default", "template": "{{ namespace.__init__.__globals__.os" + POPEN}],
        ),
        "reaches into Python",
    ),
    "a template that counts far": Hostile(
        with_template("{% for i in range(10**9) %}x{% endfor %}"), "does more than render a chat, OverflowError"
    ),
    "a template without end": Hostile(with_template(LOOPS), "does not terminate within 5 s", loads=False),
    "a template that calls itself": Hostile(
        with_template("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"), "does more than render a chat, RecursionError"
    ),
    "a template that fills the memory": Hostile(
        with_template("{{ 'a' * 10**11 }}"), "a chat, MemoryError|does not terminate", loads=False
    ),
    "a template that talks": Hostile(with_template("{{ 'a' * 10**7 }}"), "renders 10000000 characters for a chat"),
    "a template nested deep": Hostile(
        with_template("{{" + "(" * 50_000 + "1" + ")" * 50_000 + "}}"), "more than render a chat|does not terminate"
    ),
    "a template that is none": Hostile(with_template("{% for %}"), "does not parse"),
    "a template that reads files": Hostile(with_template("{% include '/etc/passwd' %}"), None),
    "a tokenizer whose pattern takes forever": Hostile(with_tokenizer_pattern("(a+)+$"), None),
    "a tokenizer of a class that is none": Hostile(
        with_setting("tokenizer_config.json", tokenizer_class="custom.Custom"), None
    ),
    "what published folders hold besides the model": Hostile(with_published_company, None),
    "a snapshot in the hub's cache": Hostile(as_hub_snapshot, None),
}  # fmt: skip
"""Each is a change to a sound folder."""


# --- files of prompts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HostileFile:
    """A file, or folder, of prompts."""

    name: str
    """Its name; the extension says how it is read."""
    make: Callable[[Path, Path], object]
    """Makes it at the first path; its payload touches the second."""
    message: str | None
    """Pattern of the error; None if it is read correctly."""
    columns: tuple[str, ...] = ()
    """Columns to read besides the instruction."""


def holding(content: bytes) -> Change:
    return lambda path, _: write(path, content)


def holding_pickle(path: Path, canary: Path) -> None:
    write(path, pickled(canary))


def packed(content: bytes, *, times: int = 1) -> Change:
    """The content in a compressed file, repeated many times."""

    def make(path: Path, canary: Path) -> None:
        import pyarrow as pa

        ways: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
        zstd: Callable[[bytes], bytes] = partial(pa.compress, codec="zstd", asbytes=True)
        write(path, ways.get(path.suffix, zstd)(content) * times)

    return make


def sparse(start: bytes, size: int) -> Change:
    def make(path: Path, canary: Path) -> None:
        with path.open("wb") as file:
            file.write(start)
            file.truncate(size)

    return make


def linking(target: str) -> Change:
    return lambda path, _: path.symlink_to(target)


def inside(make: Change) -> Change:
    """The same as the only file of a folder."""

    def change(path: Path, canary: Path) -> None:
        path.mkdir()
        make(path / "a.jsonl", canary)

    return change


def parquet(columns: Callable[[], dict[str, Any]], **options: Any) -> Change:
    def make(path: Path, canary: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table(columns()), path, store_schema=False, **options)

    return make


def one_text(times: int, chars: int) -> dict[str, Any]:
    """A column with the same text many times: a few hundred bytes on disk."""
    import pyarrow as pa

    indices = pa.array([0] * times, pa.int32())
    return {"instruction": pa.DictionaryArray.from_arrays(indices, pa.array(["a" * chars]))}


def zeros(path: Path, canary: Path) -> None:
    """A column of distinct long texts that compress to next to nothing."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([pa.field("instruction", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for i in range(20):
            writer.write_table(pa.table([["0" * (1 << 24) + str(i)]], schema=schema))


def unpickling_field(canary: Path) -> Any:
    """A field of the extension type that older versions of Arrow unpickle."""
    import pyarrow as pa

    about = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickled(canary)}
    return pa.schema([pa.field("instruction", pa.string(), metadata=about)])


def unpickling_parquet(path: Path, canary: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table([["Why?"]], schema=unpickling_field(canary)), path)


def damaged(make: Change, at: float, content: bytes) -> Change:
    """The file, or a dataset's Arrow file, with some bytes overwritten."""

    def change(path: Path, canary: Path) -> None:
        make(path, canary)
        file = next(path.glob("*.arrow")) if path.is_dir() else path
        found = bytearray(file.read_bytes())
        start = int(at * len(found))
        found[start : start + len(content)] = content
        file.write_bytes(found)

    return change


def dataset(*, name: str = "data.arrow", info: object = None, state: bytes | None = None, **options: Any) -> Change:
    """A dataset of one row as saved by the `datasets` library, with one Arrow file."""

    def make(path: Path, canary: Path) -> None:
        import pyarrow as pa

        path.mkdir()
        schema = options.get("schema", lambda _: pa.schema([("instruction", pa.string())]))(canary)
        table = pa.table([[options.get("text", "Why?")]], schema=schema)
        written = pa.ipc.IpcWriteOptions(compression=options.get("compression"))
        with pa.ipc.new_stream(str((path / name).resolve()), schema, options=written) as stream:
            stream.write_table(table)
        (path / "state.json").write_bytes(state or json.dumps({"_data_files": [{"filename": name}]}).encode())
        change_json(path / "dataset_info.json", features=info or {"instruction": {"dtype": "string", "_type": "Value"}})

    return make


def row(**values: object) -> bytes:
    return json.dumps({"instruction": "Why?"} | values).encode() + b"\n"


SOUND_PARQUET = parquet(lambda: {"instruction": ["Why?"] * 50 + ["When?"] * 50})
DATA_FILES: dict[str, HostileFile] = {
    **{
        f"a pickle that calls itself {name}": HostileFile(name, holding_pickle, "cannot be read|is not JSON")
        for name in ("a.jsonl", "a.json", "a.csv", "a.parquet")
    },
    "a pickle by its own name": HostileFile("a.pkl", holding_pickle, "has an unknown format, expected .jsonl"),
    "code": HostileFile("a.py", lambda path, canary: write(path, code(canary).encode()), "has an unknown format"),
    "an archive": HostileFile("a.tar.gz", holding(b"\x1f\x8b"), "has an unknown format"),
    "an archive cut off": HostileFile("a.jsonl.gz", holding(b"\x1f\x8b"), r"cannot be read \(.gz\)"),
    "a device in a folder": HostileFile("a", inside(linking("/dev/zero")), "is not a dataset saved to disk"),
    "a pipe in a folder": HostileFile("a", inside(lambda path, _: os.mkfifo(path)), "is not a dataset saved to disk"),
    "a pickle in a folder": HostileFile("a", inside(holding_pickle), "/a.jsonl(, line 1, is not JSON| cannot be read)"),
    **{
        f"a line without end, {name}": HostileFile(name, packed(b" " * (20 << 20)), "a line of more than 16777216")
        for name in ("a.jsonl.gz", "a.csv.xz", "a.jsonl.zst", "a.jsonl.bz2")
    },
    "gigabytes in an archive": HostileFile(
        "a.jsonl.gz", packed(b" " * (1 << 20) + b"\n", times=1030), "unpacks to more than 1073741824 bytes"
    ),
    "no ending": HostileFile("a", holding(row()), "has an unknown format"),
    **{
        f"a pipe, {name}": HostileFile(name, lambda path, _: os.mkfifo(path), "is neither a file nor a folder")
        for name in ("a.jsonl", "a.parquet")
    },
    "a device": HostileFile("a.csv", linking("/dev/zero"), "is neither a file nor a folder"),
    "a link to itself": HostileFile("a.jsonl", linking("a.jsonl"), "cannot be read"),
    "a link to nowhere": HostileFile("a.jsonl", linking("nowhere"), "does not exist"),
    "a folder": HostileFile("a.jsonl", lambda path, _: path.mkdir(), "is not a dataset saved to disk"),
    "a name that is too long": HostileFile(
        "a" * 300 + ".csv", lambda path, _: None, "cannot be read: .*File name too long"
    ),
    "a line nested deep": HostileFile("a.jsonl", holding(row() + DEEP), "line 2, is not JSON"),
    "a row nested deep": HostileFile("a.jsonl", holding(row(x=0) + b'{"a":' * 100_000), "line 2, is not JSON"),
    "a line without end": HostileFile(
        "a.jsonl", holding(row(a="a" * (1 << 24))), "a line of more than 16777216 characters"
    ),
    "a file of gigabytes": HostileFile(
        "a.jsonl", sparse(row(), 2 << 30), "has 2147483648 bytes, expected at most 1073741824"
    ),
    "zeros": HostileFile("a.jsonl", sparse(row(), 500 << 20), "a line of more than"),
    "NUL bytes": HostileFile("a.jsonl", holding(row() + b'{"instruction": "a\0b"}\n'), "line 2, is not JSON"),
    "a NUL that is text": HostileFile("a.jsonl", holding(row(instruction="a\0b")), None),
    "half a surrogate pair": HostileFile(
        "a.jsonl", holding(row(instruction="a\ud83d")), "row 1: .* an unpaired surrogate"
    ),
    "half a pair in a category": HostileFile(
        "a.jsonl", holding(row(category="\udfff")), "row 1: .* an unpaired surrogate", ("category",)
    ),
    "bytes that are not text": HostileFile(
        "a.jsonl", holding(b'{"instruction": "\xed\xa0\x80"}'), "cannot be read: .*utf-8"
    ),
    "another encoding": HostileFile(
        "a.jsonl", holding(row().decode().encode("utf-16-le")), "contains NUL bytes and may be UTF-16: save it as UTF-8"
    ),
    "another encoding that is marked": HostileFile("a.jsonl", holding(row().decode().encode("utf-16")), None),
    "a number of many digits": HostileFile(
        "a.jsonl", holding(b'{"instruction": %s}' % (b"9" * 5000)), "line 1, is not JSON"
    ),
    "a difficulty without bounds": HostileFile(
        "a.jsonl", holding(row(difficulty=1e300)), "row 1: difficulty 1e\\+300 is not", ("difficulty",)
    ),
    "a difficulty that is infinite": HostileFile(
        "a.jsonl", holding(row(difficulty=float("inf"))), "is not a whole number", ("difficulty",)
    ),
    "a difficulty of digits elsewhere": HostileFile("a.jsonl", holding(row(difficulty="९")), None, ("difficulty",)),
    "a row that is a template": HostileFile("a.jsonl", holding(row(instruction="{{ ''.__class__ }}{% for %}")), None),
    "an object nested deep": HostileFile("a.json", holding(b'[{"a":' * 50_000), "nested too deep"),
    "a JSON file of gigabytes": HostileFile("a.json", sparse(b"[", 2 << 30), "has 2147483648 bytes, expected"),
    "a field of many megabytes": HostileFile(
        "a.csv", holding(b"instruction\n" + b"a" * (17 << 20)), "a line of more than 16777216 characters"
    ),
    "a field of many lines": HostileFile(
        "a.csv", holding(b'instruction\n"' + (b"a" * 1023 + b"\n") * (17 << 10)), "cannot be read: field larger than"
    ),
    "a quote that does not end": HostileFile(
        "a.csv", holding(b'instruction\n"a\nb\nc\n'), "cannot be read: unexpected end"
    ),
    "more cells than columns": HostileFile(
        "a.csv", holding(b"instruction\na,b\n"), "line 2, does not have as many cells as the header"
    ),
    "a formula": HostileFile("a.csv", holding(b"instruction\n=cmd|' /C calc'!A0\n"), None),
    "CSV of zeros": HostileFile("a.csv", sparse(b"instruction\n", 500 << 20), "a line of more than"),
    "one text, fifty thousand times": HostileFile(
        "a.parquet", parquet(lambda: one_text(50_000, 1_000_000)), "more than 2000000 rows or 268435456 characters"
    ),
    "one long text, many times": HostileFile(
        "a.parquet",
        parquet(lambda: one_text(256, 1 << 25)),
        "needs more than 4 GiB|more than 2000000 rows or|cannot be read",
    ),
    "zeros that are compressed": HostileFile("a.parquet", zeros, "more than 2000000 rows or 268435456 characters"),
    "five million rows": HostileFile("a.parquet", parquet(lambda: one_text(5_000_000, 1)), "more than 2000000: split"),
    "a Parquet file cut off": HostileFile(
        "a.parquet", both(SOUND_PARQUET, lambda path, _: os.truncate(path, 200)), "cannot be read"
    ),
    "a Parquet file whose footer lies": HostileFile(
        "a.parquet", damaged(SOUND_PARQUET, 0.55, b"\xff" * 8), "cannot be read"
    ),
    "a Parquet file whose pages lie": HostileFile(
        "a.parquet",
        damaged(SOUND_PARQUET, 0.02, b"\x15\xfe\xff\xff\xff\x0f\x15\xfe\xff\xff\xff\x0f"),
        "cannot be read|needs more",
    ),
    "a Parquet file of bytes": HostileFile(
        "a.parquet", parquet(lambda: {"instruction": [b"Why?"]}), "contains bytes, expected text"
    ),
    "a Parquet file of lists": HostileFile(
        "a.parquet", parquet(lambda: {"instruction": [["Why?"]]}), "row 1: .* expected text"
    ),
    "a Parquet type that was unpickled once": HostileFile("a.parquet", unpickling_parquet, None),
    "an Arrow type that was unpickled once": HostileFile("a", dataset(schema=unpickling_field), None),
    "features of a custom class": HostileFile(
        "a", dataset(info={"instruction": {"_type": "Path", "_pickled": "gASV", "id": "../.."}}), None
    ),
    "a dataset that is a script": HostileFile(
        "a", lambda path, canary: write(path / "a.py", code(canary).encode()), "is not a dataset saved to disk"
    ),
    "a script next to a dataset": HostileFile(
        "a", both(dataset(), lambda path, canary: write(path / "a.py", code(canary).encode())), None
    ),
    "a pickle next to a dataset": HostileFile("a", both(dataset(), with_pickle("state.pkl")), None),
    "a dataset whose state is a pickle": HostileFile("a", both(dataset(), with_pickle("state.json")), "cannot be read"),
    "a dataset whose state is nested deep": HostileFile("a", dataset(state=DEEP), "nested too deep"),
    "a dataset whose state is nothing": HostileFile("a", dataset(state=b"{}"), "cannot be read"),
    "a dataset in a pickle": HostileFile("a", both(dataset(), with_pickle("data.arrow")), "truncated|cannot be read"),
    "a dataset in a pipe": HostileFile("a", both(dataset(), with_pipe("data.arrow")), "names the file 'data.arrow'"),
    "a dataset in a device": HostileFile("a", both(dataset(), with_link("data.arrow", "/dev/zero")), "names the file"),
    "a dataset outside": HostileFile("a", dataset(name="../outside.arrow"), "names the file '../outside.arrow'"),
    "a dataset anywhere": HostileFile(
        "a", dataset(state=b'{"_data_files": [{"filename": "/etc/hostname"}]}'), "names the file '/etc/hostname'"
    ),
    "a dataset cut off": HostileFile(
        "a", both(dataset(), lambda path, _: os.truncate(path / "data.arrow", 300)), "is truncated: data.arrow"
    ),
    "a dataset whose offsets lie": HostileFile("a", damaged(dataset(), 0.8, b"\xff" * 16), "cannot be read|truncated"),
    "a dataset whose metadata lie": HostileFile("a", damaged(dataset(), 0.1, b"\xff" * 64), "cannot be read|truncated"),
    "a dataset of compressed zeros": HostileFile(
        "a", dataset(text="0" * (300 << 20), compression="zstd"), "more than 2000000 rows or 268435456 characters"
    ),
    "a dataset of several splits": HostileFile(
        "a",
        lambda path, _: write(path / "dataset_dict.json", b'{"splits": ["train", "test"]}'),
        r"several splits \(train, test",
    ),
}
"""Each is a file or a folder of prompts."""
