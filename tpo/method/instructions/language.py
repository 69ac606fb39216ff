"""Language identification by langdetect, which IFEval's official checker uses.

langdetect samples the text's letter groups at random. Here its seed is fixed for every text, so that a verdict is the
same in every process and on every run; the official checker's can vary between runs on short or mixed texts. It looks
at the first 10,000 characters and gives up after a fixed number of draws, so its time is bounded.
"""

import functools
import re
from importlib.resources import files
from typing import Any

SEED = 0
"""Seed of langdetect's draws, the same for each text."""
LANGUAGES = frozenset(
    re.findall(
        r"\S+",
        """
        af ar bg bn ca cs cy da de el en es et fa fi fr gu he hi hr hu id it ja kn ko lt lv mk ml mr ne nl no
        pa pl pt ro ru sk sl so sq sv sw ta te th tl tr uk ur vi zh-cn zh-tw
        """,
    )
)
"""Codes of the languages that it can identify (ISO 639-1, Chinese by script)."""


def detect_language(text: str) -> str | None:
    """The code of a text's language; None if nothing in it indicates one, such as digits alone."""
    from langdetect.lang_detect_exception import LangDetectException

    detector = _factory().create()
    detector.append(text)
    try:
        return str(detector.detect())
    except LangDetectException:
        return None


@functools.cache
def _factory() -> Any:
    """A dedicated detector factory: langdetect's is shared by the whole process, and any code could change its seed.

    Profiles are loaded in the order of their names, not in the file system's.
    """
    from langdetect.detector_factory import DetectorFactory

    profiles = sorted((path for path in files("langdetect").joinpath("profiles").iterdir()), key=lambda path: path.name)
    factory = DetectorFactory()
    factory.seed = SEED
    factory.load_json_profile([path.read_text(encoding="utf-8") for path in profiles if path.is_file()])
    return factory
