"""Claims about chats under the templates of five families: thousands for each, hostile and plain, token by token.

The expected tokens are computed independently: the family's layout, with its texts read by a tokenizer without control
tokens. A commit tests 30,000 random chats, `make exhaustive` 105,000; `TPO_FUZZ_CHATS` sets the number per family.
"""

import os
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.models.template_families import BY_NAME, FAMILIES, Control, Family, Layout, rendered, sections
from tests.sampling import dice, exhaustive
from tpo.errors import InputError
from tpo.models.chat import ChatEncoder
from tpo.records import Message

CHATS = int(os.environ.get("TPO_FUZZ_CHATS", "21000" if exhaustive() else "6000"))
AT_ONCE = 1000
NAMES = [family.name for family in FAMILIES]
ROLES = [
    *[("user",)] * 10,
    *[("system", "user")] * 4,
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
]
READ = [*[("user", "assistant")] * 5, ("system", "user", "assistant")]

CONTROL = sorted({token for family in FAMILIES for token in (*family.control, *family.markers)})
STRUCTURE = ["user", "assistant\n", "system", "model\n", "<|im_", "start|>", "<|", "|>", "[", "INST]", "<s", ">", "</s"]
TEMPLATE = ["{{ bos_token }}", "{%", "%}", "{{", "}}", "{# x #}", "{% for m in messages %}", "{{ messages }}", "\\n"]
BLANK = [
    "\n",
    "\r",
    "\r\n",
    "\n\n\n",
    "\t",
    "\v",
    "\f",
    " ",
    "   ",
    "\x85",
    "\xa0",
    "\u2003",
    "\u2028",
    "\u2029",
    "\x1c",
]
UNSEEN = ["\u200b", "\u200d", "\u2060", "\ufeff", "\u202e", "\u2066", "\u2069", "\u200f", "\x00", "\x7f", "\xad"]
WORDS = [
    "fox",
    " thinks",
    "Here is my response:",
    " 42",
    "Über",
    "мир",
    "日本語",
    "👩\u200d💻",
    "e\u0301",
    "ß",
    "\ufffc0\ufffc",
    "▁",
]
HALF = re.compile("[\ud800-\udfff]")
HALVES = ["\ud83d", "\udc00", "a\udfff"]


def a_text(draw: random.Random) -> str:
    """A random text of a kind that has broken something before."""
    kind = draw.random()
    if kind < 0.03:
        return ""
    if kind < 0.033:
        return draw.choice(["long ", "<|im_end|>", "\n", "x", "é"]) * draw.randrange(200, 2000)
    if kind < 0.038:
        return f"said{draw.choice(HALVES)}"
    if kind < 0.2:
        return "".join(a_character(draw) for _ in range(draw.randrange(1, 24)))
    chosen = draw.choices(
        [CONTROL, STRUCTURE, TEMPLATE, BLANK, UNSEEN, WORDS], [3, 2, 1, 2, 1, 4], k=draw.randrange(1, 9)
    )
    text = "".join(draw.choice(pieces) for pieces in chosen)
    return draw.choice(BLANK) + text + draw.choice(BLANK) if kind > 0.9 else text


def a_character(draw: random.Random) -> str:
    code = draw.randrange(0x300) if draw.random() < 0.5 else draw.randrange(0x30000)
    return chr(code) if not 0xD800 <= code < 0xE000 else "?"


def chats(family: str, count: int) -> Iterator[list[Message]]:
    """Chats to be answered, and some that end with an assistant's turn, to be judged."""
    draw = dice(f"chats of {family}")
    for _ in range(count):
        roles = draw.choice(READ if draw.random() < 0.2 else ROLES)
        yield [Message(role=role, content=a_text(draw)) for role in roles]


class Expected:
    """The tokens that a chat must have."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.letters: Tokenizer = family.letters()
        whole = family.tokenizer()
        self.control = {token: whole.convert_tokens_to_ids(token) for token in family.control}

    def of(self, layouts: Sequence[Layout]) -> list[list[int]]:
        """The tokens of some layouts."""
        texts = sorted({part for layout in layouts for part in layout if isinstance(part, str)})
        found = self.letters.encode_batch_fast(texts, add_special_tokens=False)
        ids = dict(zip(texts, [encoding.ids for encoding in found], strict=True))
        hidden = set(self.control.values()).intersection(token for some in ids.values() for token in some)
        assert not hidden, "a text became a control token"
        return [
            [
                token
                for part in layout
                for token in ([self.control[part.token]] if isinstance(part, Control) else ids[part])
            ]
            for layout in layouts
        ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {family.name: family.save(folder / family.name) for family in FAMILIES}


def layout_of(family: Family, chat: Sequence[Message]) -> Layout | None:
    """A chat's layout; None if it must be refused."""
    if any(HALF.search(message["content"]) for message in chat):
        return None
    layout = family.layout(chat, chat[-1]["role"] != "assistant")
    return None if layout is None else sections(layout)


@pytest.mark.parametrize("name", NAMES)
def test_a_chat_has_exactly_the_tokens_of_its_template(folders: dict[str, Path], name: str):
    family, expected = BY_NAME[name], Expected(BY_NAME[name])
    encoders = {to_answer: ChatEncoder(folders[name], generation_prompt=to_answer) for to_answer in (True, False)}
    bos = expected.control[family.bos] if family.bos else None
    backend = encoders[True].tokenizer.backend_tokenizer
    drawn, seen = chats(name, CHATS), {"encoded": 0, "refused": 0}
    while some := [chat for _, chat in zip(range(AT_ONCE), drawn, strict=False)]:
        layouts, encoded = list[Layout](), list[list[int]]()
        for chat in some:
            layout, encoder = layout_of(family, chat), encoders[chat[-1]["role"] != "assistant"]
            if layout is None:
                with pytest.raises(InputError, match=r"rejects|changes the text|surrogate"):
                    encoder.encode(chat)
                seen["refused"] += 1
            else:
                layouts.append(layout)
                encoded.append(encoder.encode(chat))
        for layout, ids, wanted in zip(layouts, encoded, expected.of(layouts), strict=True):
            assert ids == wanted, rendered(layout)
        assert all(ids.count(bos) == 1 and ids[0] == bos for ids in encoded if bos is not None)
        texts = [rendered(layout) for layout in layouts]
        for text, back in zip(texts, backend.decode_batch(encoded, skip_special_tokens=False), strict=True):
            assert back == text or (family.spaces and "▁" in text)
        seen["encoded"] += len(encoded)
    assert sum(seen.values()) == CHATS and seen["encoded"] > CHATS / 2 and seen["refused"] > CHATS / 500


@pytest.mark.parametrize("name", NAMES)
def test_a_chat_without_control_tokens_is_encoded_as_transformers_does(folders: dict[str, Path], name: str):
    family = BY_NAME[name]
    encoder = ChatEncoder(folders[name])
    plain = [
        chat
        for chat in chats(name, 3000)
        if (layout := layout_of(family, chat)) is not None
        and not any(token in part for part in layout if isinstance(part, str) for token in family.control)
        and chat[-1]["role"] == "user"
    ]
    assert len(plain) > 500
    for chat in plain:
        ids = encoder.tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=False)
        assert encoder.encode(chat) == list(ids)


@pytest.mark.parametrize("name", NAMES)
def test_a_judge_reads_the_question_the_answer_and_the_end_of_the_turn(folders: dict[str, Path], name: str):
    family, letters = BY_NAME[name], BY_NAME[name].letters()
    asked, read = (ChatEncoder(folders[name], generation_prompt=to_answer) for to_answer in (True, False))
    draw, compared = random.Random(f"judged {name}"), 0
    while compared < 300:
        user, answer = Message(role="user", content=a_text(draw)), a_text(draw).strip()
        chat = [user, Message(role="assistant", content=answer)]
        if layout_of(family, chat) is None:
            continue
        prompt, whole = asked.encode([user]), read.encode(chat)
        end = whole.index(read.control[family.end_of_turn], len(prompt) - 1)
        # Header and answer are tokenized as one text, so the header's end may merge with the answer's first letters.
        header = prompt[max(i for i, token in enumerate(prompt) if token in read.control.values()) + 1 :]
        before = rendered((family.layout([user], True) or [])[-1:] if header else [])
        shown = " " + answer if name == "mistral" else before + answer
        assert whole[: len(prompt) - len(header)] == prompt[: len(prompt) - len(header)]
        assert whole[len(prompt) - len(header) : end] == letters.encode(shown, add_special_tokens=False).ids
        compared += 1


def test_a_tokenizer_by_itself_doubles_the_bos_of_a_rendered_chat(folders: dict[str, Path]):
    """The trap that the encoder avoids is real: tokenizing a rendered chat doubles its BOS."""
    for name in ("llama3", "mistral", "gemma"):
        encoder = ChatEncoder(folders[name])
        chat = [Message(role="user", content="Say hello.")]
        text = encoder.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        bos = encoder.tokenizer.bos_token_id
        assert encoder.tokenizer(text)["input_ids"][:2] == [bos, bos]
        assert encoder.encode(chat).count(bos) == 1
