import pytest

from calibrant.errors import InputError
from calibrant.prompts import LETTERS, Prompt, context, encode
from calibrant.questions import Question
from helpers import make_questions

APPLE = Question("1", "Which is a fruit?", ("Brick", "Green apple", "Cat"), 1)


def text_of(tokenizer, encoded, k):
    """The whole text option k is read from, and the text that is scored."""
    tokens = encoded.prefix + encoded.branches[k] + [encoded.reads[k][-1][1]]
    scored = [token for _, token in encoded.reads[k]]
    return tokenizer.decode(tokens), tokenizer.decode(scored)


def test_a_single_letter_is_the_one_token_after_the_context(tokenizer):
    (encoded,) = encode([APPLE], tokenizer, Prompt("letter", letter_tokens="single"))
    for k in range(3):
        whole, scored = text_of(tokenizer, encoded, k)
        assert whole == context(APPLE, "letter") + f" {LETTERS[k]}"
        assert scored == f" {LETTERS[k]}"
        assert encoded.branches[k] == []


@pytest.mark.parametrize("prompt", ["letter", "chat-letter"])
def test_a_merged_letter_is_every_token_that_reads_as_it(tokenizer, prompt):
    (encoded,) = encode([APPLE], tokenizer, prompt)
    vocabulary = range(len(tokenizer))
    for k in range(3):
        spellings = [i for i in vocabulary if tokenizer.decode([i]).strip() == LETTERS[k]]
        assert len(spellings) == 2
        assert encoded.reads[k] == [(0, token) for token in spellings]


def test_spellings_of_a_letter_in_a_sentencepiece_vocabulary():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "▁A", "▁B", "A", "B", "<0x41>", "<0x42>", "▁", ":", "AB", "▁▁A", "x", "Q"]
    inner = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    (encoded,) = encode([Question("1", "x", ("x", "y"), 0)], tokenizer, "letter")
    read = [{words[token] for _, token in reads} for reads in encoded.reads]
    assert read == [{"▁A", "A", "▁▁A", "<0x41>"}, {"▁B", "B", "<0x42>"}]


@pytest.mark.parametrize(
    ("prompt", "divisor"), [("cloze", None), ("cloze-char", 11), ("cloze-sum", 1)]
)
def test_cloze_scores_exactly_the_option_text(tokenizer, prompt, divisor):
    (encoded,) = encode([APPLE], tokenizer, prompt)
    whole, scored = text_of(tokenizer, encoded, 1)
    assert whole == "Question: Which is a fruit?\nAnswer: Green apple"
    assert scored == " Green apple"
    assert encoded.divisors[1] == (divisor or len(tokenizer(" Green apple")["input_ids"]))


def test_chat_letter_has_one_beginning_and_ends_with_the_assistant(tokenizer):
    (encoded,) = encode([APPLE], tokenizer, "chat-letter")
    assert encoded.prefix.count(tokenizer.bos_token_id) == 2  # one per turn of this template
    assert tokenizer.decode(encoded.prefix).endswith("assistant\n")


def test_special_tokens_are_added_once_and_a_closing_one_never(tokenizer):
    from copy import deepcopy

    from tokenizers.processors import TemplateProcessing

    closing = deepcopy(tokenizer)
    closing.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    plain = encode([APPLE], tokenizer, "cloze")[0]
    special = encode([APPLE], closing, "cloze")[0]
    assert special.prefix == [0, *plain.prefix]
    assert special.reads == plain.reads


def test_a_merge_across_the_boundary_scores_as_the_whole_text_does(tokenizer):
    """A context whose last token changes when the option follows is still read consistently."""
    question = Question("1", "x", (" red", "  red", "green"), 0)
    (encoded,) = encode([question], tokenizer, "cloze")
    for k, choice in enumerate(question.choices):
        whole = tokenizer(f"Question: x\nAnswer: {choice}")["input_ids"]
        start = len(tokenizer("Question: x\nAnswer:")["input_ids"])
        assert encoded.prefix + encoded.branches[k] == whole[:-1]
        assert [token for _, token in encoded.reads[k]] == whole[start:]


def test_letter_that_fuses_with_the_colon_takes_another_separator():
    """In cl100k-like vocabularies ':A' is one token; the blank before it saves the letter."""
    tokenizer = small_vocabulary([":", "A", "B", ":A", ":B", "ĠA", "ĠB"], [":A", ":B", "ĠA", "ĠB"])
    single = Prompt("letter", letter_tokens="single")
    (encoded,) = encode([Question("1", "x", ("x", "y"), 0)], tokenizer, single)
    assert [tokenizer.convert_ids_to_tokens(r[0][1]) for r in encoded.reads] == ["ĠA", "ĠB"]


@pytest.mark.parametrize(
    ("merged", "ending"),
    [
        ([], ":|A"),
        ([":A", ":B", "ĠA", "ĠB"], ":|ĠA"),  # the bare letter fuses
        ([":A", ":B"], ":|Ċ|A"),  # and a blank is a token of its own
    ],
)
def test_the_first_separator_that_keeps_the_letter_whole_is_taken(merged, ending):
    tokenizer = small_vocabulary(["A", "B", *merged], merged)
    tokenizer.chat_template = "{{ messages[0]['content'] }}assistant:"
    single = Prompt("chat-letter", letter_tokens="single")
    (encoded,) = encode([Question("1", "x", ("x", "y"), 0)], tokenizer, single)
    tokens = tokenizer.convert_ids_to_tokens([*encoded.prefix, encoded.reads[0][0][1]])
    assert "|".join(tokens).endswith("t|" + ending)


def test_letter_without_a_token_of_its_own_is_refused():
    tokenizer = small_vocabulary(["A", "B"], [], unknown=True)
    with pytest.raises(InputError, match="letter prompts cannot be scored; use --prompt cloze"):
        encode([Question("1", "x", ("x", "y"), 0)], tokenizer, "letter")


def small_vocabulary(tokens, merged, unknown=False):
    """A byte-level tokenizer over the printable bytes and a few merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if unknown:  # letters are not in the vocabulary: all become <unk>
        inner = Tokenizer(models.WordLevel({"<unk>": 0, "Question": 1}, unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()))
    vocabulary = {t: i for i, t in enumerate([*alphabet, *(t for t in tokens if len(t) > 1)])}
    inner = Tokenizer(models.BPE(vocabulary, [(t[0], t[1]) for t in merged]))
    inner.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")  # merges may cross blanks
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [inner.pre_tokenizer, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def test_unknown_format_and_missing_template_are_refused(tokenizer):
    from copy import deepcopy

    with pytest.raises(InputError, match="expected one of letter, chat-letter, cloze"):
        encode([APPLE], tokenizer, "essay")
    bare = deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        encode([APPLE], bare, "chat-letter")


def test_two_to_ten_options_in_one_call(tokenizer):
    questions = list(make_questions(30, k_min=2, k_max=10))
    encoded = encode(questions, tokenizer, "letter")
    assert [len(e.reads) for e in encoded] == [len(q.choices) for q in questions]


def test_a_prompt_is_what_its_json_says():
    assert Prompt.of("cloze").to_json() == "cloze"
    prompt = Prompt("letter", letter_tokens="single")
    assert Prompt.of(prompt.to_json()) == Prompt.of(prompt) == prompt
    with pytest.raises(InputError, match="letter_tokens 'both', expected one of merged, single"):
        Prompt(letter_tokens="both")
    with pytest.raises(InputError, match="unknown 'colour'"):
        Prompt.of({"format": "letter", "colour": "red"})
    with pytest.raises(InputError, match="expected a Prompt or the name of a format"):
        Prompt.of(7)
