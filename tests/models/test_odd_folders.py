"""Claims about odd model folders: one line says what is wrong, before work, and the same line everywhere."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from flows.cli.plan import plan_run
from flows.cli.serve import Place, serve
from flows.preflight import preflight
from tests.hostile_files import sound_model
from tests.models.odd_folders import CONFIGS, FILES, SOUND, WEIGHTS, Odd
from tests.rows import a_config
from tpo.config.data import ModelConfig
from tpo.config.run import RunConfig
from tpo.errors import InputError
from tpo.models.folder import check_writer
from tpo.models.model_config import check_use
from tpo.models.weights_check import check_weights


def refusal(check: object, *arguments: object, **options: object) -> str:
    with pytest.raises(InputError) as refused:
        check(*arguments, **options)  # type: ignore[operator]
    return str(refused.value)


def run_on(folder: Path) -> RunConfig:
    return a_config(folder.parent, model=ModelConfig(path=str(folder)))


@pytest.mark.parametrize(
    "odd", [pytest.param(odd, id=name) for cases in (CONFIGS, FILES) for name, odd in cases.items()]
)
def test_check_plan_and_run_refuse_an_odd_folder_in_the_same_words(tmp_path: Path, odd: Odd):
    folder = sound_model(tmp_path / "odd")
    odd.make(folder)
    message = refusal(preflight, run_on(folder))
    assert message.count("\n") == 0 and len(message) < 800
    assert refusal(check_writer, folder, trained=True) == message
    with pytest.raises(InputError, match=odd.pattern):
        raise InputError(message)
    if (folder / "model.safetensors").is_file() and (folder / "config.json").is_file():
        assert refusal(plan_run, run_on(folder), 1) == message


@pytest.mark.parametrize("name", [name for name in CONFIGS if "quantized" not in name and "images" not in name])
def test_an_odd_config_is_not_served_either(tmp_path: Path, name: str):
    if name in ("an unknown family", "a family that does not generate"):
        pytest.skip("vLLM knows families that transformers does not")
    folder = sound_model(tmp_path / "odd")
    CONFIGS[name].make(folder)
    settings = {"name": "m", "context_tokens": None, "allow_thoughts": False}
    message = refusal(serve, folder, run_on(folder), Place(port=0), **settings)
    assert message == refusal(preflight, run_on(folder))


@pytest.mark.parametrize("odd", [pytest.param(odd, id=name) for name, odd in WEIGHTS.items()])
def test_weights_that_are_not_those_of_the_config_are_refused(tmp_path: Path, odd: Odd):
    folder = sound_model(tmp_path / "odd")
    odd.make(folder)
    preflight(run_on(folder))
    message = refusal(check_weights, folder)
    assert message.count("\n") == 0 and len(message) < 800
    with pytest.raises(InputError, match=odd.pattern):
        raise InputError(message)


@pytest.mark.parametrize("name", SOUND)
def test_an_unusual_folder_that_works_is_accepted_silently(tmp_path: Path, name: str):
    folder = sound_model(tmp_path / "sound")
    SOUND[name](folder)
    preflight(run_on(folder))
    assert check_weights(folder) == []


def test_an_unused_tensor_is_noted(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = sound_model(tmp_path / "more")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "model.layers.0.more.weight": tensors["model.norm.weight"].clone()}, path)
    (line,) = check_weights(folder)
    assert "does not use (model.layers.0.more.weight)" in line


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            "meta-llama/Llama-3.2-1B-Instruct",
            "hf download meta-llama/Llama-3.2-1B-Instruct --local-dir models/Llama-3.2",
        ),
        (
            "models/Llama-3.2-1B-Instruct",
            "hf download OWNER/Llama-3.2-1B-Instruct --local-dir models/Llama-3.2-1B-Instr",
        ),
        ("/nowhere/at/all", "expected one with safetensors, config and tokenizer"),
    ],
)
def test_a_missing_model_is_refused_with_its_download_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, expected: str
):
    monkeypatch.chdir(tmp_path)
    assert expected in refusal(check_writer, Path(path))


@pytest.mark.parametrize(("method", "expected"), [("bitsandbytes", "bitsandbytes"), ("gptq", "optimum, gptqmodel")])
def test_a_quantized_judge_is_refused_if_its_packages_are_not_installed(tmp_path: Path, method: str, expected: str):
    folder = sound_model(tmp_path / "odd")
    CONFIGS[f"weights quantized by {method}"].make(folder)
    assert f"packages that are not installed ({expected})" in refusal(check_writer, folder, device="cpu")


@pytest.mark.parametrize("method", ["fp8", "mxfp4", "compressed-tensors"])
def test_a_judge_quantized_in_a_way_that_vllm_supports_is_accepted(tmp_path: Path, method: str):
    folder = sound_model(tmp_path / "odd")
    CONFIGS[f"weights quantized by {method}"].make(folder)
    assert check_writer(folder, device="gpu") == 512
    assert check_weights(folder) == []


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is here, and the family runs")
@pytest.mark.parametrize("name", ["Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM"])
def test_a_family_that_needs_torchvision_is_refused_without_it(tmp_path: Path, name: str):
    with pytest.raises(InputError, match="for which vLLM needs torchvision"):
        check_use(tmp_path, {"architectures": [name], "model_type": "qwen3_5_text"}, trained=False, device="cpu")
