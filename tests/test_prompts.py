from dataclasses import replace

import pytest

from calibrant.errors import InputError
from calibrant.prompts import LETTERS, Prompt, context, encode, resolved, show
from calibrant.questions import Question, question_key
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
    with pytest.raises(InputError, match="letter prompts cannot be scored; use another"):
        encode([Question("1", "x", ("x", "y"), 0)], tokenizer, "letter")


def small_vocabulary(tokens, merged, unknown=False):
    """A byte-level tokenizer over the printable bytes and a few merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if unknown:  # letters are not in the vocabulary: all become <unk>
        inner = Tokenizer(models.WordLevel({"<unk>": 0, "Question": 1}, unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()))
    vocabulary = {t: i for i, t in enumerate([*alphabet, *(t for t in tokens if len(t) > 1)])}
    inner = Tokenizer(models.BPE(vocabulary, [(t[0], t[1]) for t in merged]))
    inner.decoder = decoders.ByteLevel()
    inner.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")  # merges may cross blanks
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [inner.pre_tokenizer, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def test_unknown_format_and_missing_template_are_refused(tokenizer):
    from copy import deepcopy

    with pytest.raises(InputError, match="expected one of letter, chat-letter, labels"):
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


# -- styles and separators --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("style", "listed", "ending", "markers"),
    [
        ("A.", "A. Brick\nB. Green apple\nC. Cat\n", "Answer:", "ABC"),
        ("A)", "A) Brick\nB) Green apple\nC) Cat\n", "Answer:", "ABC"),
        ("(A)", "(A) Brick\n(B) Green apple\n(C) Cat\n", "Answer: (", "ABC"),
        ("A:", "A: Brick\nB: Green apple\nC: Cat\n", "Answer:", "ABC"),
        ("1.", "1. Brick\n2. Green apple\n3. Cat\n", "Answer:", "123"),
        ("(1)", "(1) Brick\n(2) Green apple\n(3) Cat\n", "Answer: (", "123"),
    ],
)
def test_every_style_lists_the_options_and_reads_its_own_letters(
    tokenizer, style, listed, ending, markers
):
    prompt = Prompt("letter", letter_style=style)
    assert f"Options:\n{listed}" in context(APPLE, prompt)
    (encoded,) = encode([APPLE], tokenizer, prompt)
    assert tokenizer.decode(encoded.prefix).rstrip(" ").endswith(ending)
    for marker, reads in zip(markers, encoded.reads, strict=True):
        assert {tokenizer.decode([token]).strip() for _, token in reads} == {marker}


def test_a_forced_separator_is_used_or_refused():
    question = Question("1", "x", ("x", "y"), 0)
    tokenizer = small_vocabulary([":", "A", "B", ":A", ":B", "ĠA", "ĠB"], [":A", ":B", "ĠA", "ĠB"])
    newline = Prompt("letter", separator="\n", letter_tokens="single")
    (encoded,) = encode([question], tokenizer, newline)
    assert tokenizer.decode(encoded.prefix).endswith("Answer:\n")
    with pytest.raises(InputError, match=r"with any of the separators \('',\)"):
        encode([question], tokenizer, Prompt("letter", letter_style="A.", separator=""))


def test_letters_that_fuse_with_every_blank_are_read_inside_brackets():
    """':A', ' A' after the colon and '\\nA' are no letters of their own here; '(' + 'A' is."""
    question = Question("1", "x", ("x", "y"), 0)
    merges = [":A", ":B", "Ċ" + "A", "ĊB", ":Ġ"]
    tokenizer = small_vocabulary(merges, merges)
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    settled = resolved("letter", tokenizer, [question])
    assert (settled.letter_style, settled.separator) == ("(A)", " (")
    (encoded,) = encode([question], tokenizer, "letter")
    assert tokenizer.decode(encoded.prefix).endswith("(B) y\nAnswer: (")


def test_numbers_of_two_digits_are_refused_where_they_are_two_tokens(tokenizer):
    ten = Question("1", "x", tuple("abcdefghij"), 0)
    with pytest.raises(InputError, match="no single token of each of 1 to 10"):
        encode([ten], tokenizer, Prompt("letter", letter_style="1."))
    assert len(encode([ten], tokenizer, "letter")[0].reads) == 10


def test_a_prompt_once_resolved_stays_as_it_is(tokenizer):
    questions = list(make_questions(5))
    for prompt in ("letter", "chat-letter", "cloze", "labels"):
        settled = resolved(prompt, tokenizer, questions)
        assert settled.separator is not None
        assert resolved(settled, tokenizer, questions) == settled
        assert encode(questions, tokenizer, settled) == encode(questions, tokenizer, prompt)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "cloze", "letter_style": "A."}, "'cloze' has no letters to style"),
        ({"format": "letter", "system_prompt": "x"}, "'letter' has no system prompt"),
        ({"letter_style": "[A]"}, r"letter_style '\[A\]', expected one of A., A\), \(A\)"),
        ({"shots": 2}, "shots 2 with 0 examples, expected examples"),
        ({"shots": 2, "examples": (APPLE,)}, "shots 2 with 1 examples, expected examples"),
    ],
)
def test_a_prompt_that_means_nothing_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Prompt(**fields)


# -- chat templates ---------------------------------------------------------------------------

THINKS = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{{ ENDING }}{% endif %}"
)


def with_template(tokenizer, template):
    from copy import deepcopy

    changed = deepcopy(tokenizer)
    changed.chat_template = template
    return changed


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("''", "<s>assistant\n"),
        # A switch the template has is set.
        ("'' if enable_thinking is false else '<think>\n'", "<s>assistant\n"),
        ("'<think>\n' if thinking else '</think>'", "<s>assistant\n</think>"),
        ("'<think>\n\n</think>\n\n'", "<s>assistant\n<think>\n\n</think>\n\n"),
        # A block the template opens regardless is closed.
        ("'<think>\n'", "<s>assistant\n<think>\n\n</think>\n\n"),
        ("'<think>'", "<s>assistant\n<think>\n\n</think>\n\n"),
        ("'<seed:think>\n'", "<s>assistant\n<seed:think>\n\n</seed:think>\n\n"),
    ],
)
def test_the_letter_is_read_after_thinking(tokenizer, ending, expected):
    changed = with_template(tokenizer, THINKS.replace("ENDING", ending))
    text = context(APPLE, "chat-letter", changed)
    assert text.endswith(f"single letter.\n{expected}")


def test_a_question_about_tags_is_no_thought(tokenizer):
    question = Question("1", "What does <think> open?", ("A block", "Nothing"), 0)
    text = context(question, "chat-letter", tokenizer)
    assert text.endswith("<s>assistant\n")


def test_the_answer_channel_of_a_harmony_template_is_opened(tokenizer):
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}<|start|>assistant"
    text = context(APPLE, "chat-letter", with_template(tokenizer, template))
    assert text.endswith("<|start|>assistant<|channel|>final<|message|>")


def test_a_system_prompt_is_said_first_or_refused_with_the_templates_reason(tokenizer):
    prompt = Prompt("chat-letter", system_prompt="Be brief.")
    assert context(APPLE, prompt, tokenizer).startswith("<s>system\nBe brief.\n<s>user\n")
    strict = with_template(
        tokenizer,
        "{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}",
    )
    with pytest.raises(InputError, match=r"System role not supported.*a system message"):
        context(APPLE, prompt, strict)


def test_a_templates_own_beginning_is_not_doubled(tokenizer):
    """A tokenizer that puts <s> before every text, and a template that writes it too."""
    from copy import deepcopy

    from tokenizers.processors import TemplateProcessing

    opening = deepcopy(tokenizer)
    opening.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    (chat,) = encode([APPLE], opening, "chat-letter")
    assert chat.prefix[:2] != [0, 0]
    assert chat.prefix == encode([APPLE], tokenizer, "chat-letter")[0].prefix
    (plain,) = encode([APPLE], opening, "letter")
    assert plain.prefix[0] == 0
    assert plain.prefix.count(0) == 1


# -- few-shot ---------------------------------------------------------------------------------


def test_examples_come_first_with_their_answers(tokenizer):
    shown = Question("e", "Which is blue?", ("Sky", "Coal"), 0)
    assert context(APPLE, Prompt(examples=(shown,))) == (
        "Question: Which is blue?\nOptions:\nA. Sky\nB. Coal\nAnswer: A\n\n"
        "Question: Which is a fruit?\nOptions:\nA. Brick\nB. Green apple\nC. Cat\nAnswer:"
    )
    assert context(APPLE, Prompt("cloze", examples=(shown,))) == (
        "Question: Which is blue?\nAnswer: Sky\n\nQuestion: Which is a fruit?\nAnswer:"
    )
    bracketed = resolved(Prompt(examples=(shown,), letter_style="(A)"), tokenizer, [APPLE])
    assert "\n(B) Coal\nAnswer: (A)\n\nQuestion" in context(APPLE, bracketed)
    chat = context(APPLE, Prompt("chat-letter", examples=(shown,)), tokenizer)
    assert "(" not in chat
    assert chat.count("<s>user") == 2
    assert "single letter.\n<s>assistant\nA\n<s>user\nQuestion: Which is a fruit?" in chat


def test_a_question_is_never_its_own_example():
    pool = list(make_questions(8, seed=5))
    prompt = Prompt().with_examples(pool, 3)
    assert len(prompt.examples) == 4, "one to stand in"
    twin = replace(prompt.examples[0], id="other", choices=prompt.examples[0].choices[::-1])
    for question in (*pool, replace(twin, answer=0)):
        shown = prompt.shown_to(question)
        assert len(shown) == 3
        assert question_key(question) not in [question_key(e) for e in shown]
    exact = Prompt(examples=tuple(pool[:3]), shots=3)
    assert len(exact.shown_to(pool[5])) == 3
    with pytest.raises(InputError, match=r"'q1': there are 2 few-shot examples besides"):
        exact.shown_to(pool[1])


def test_examples_of_the_questions_own_subject():
    pool = [
        replace(q, subject=subject, id=f"{subject}{i}")
        for subject in ("law", "art")
        for i, q in enumerate(make_questions(5, seed=len(subject) + ord(subject[0])))
    ]
    prompt = Prompt().with_examples(pool, 2, "subject", seed=1)
    assert len(prompt.examples) == 6
    for q in pool:
        assert {e.subject for e in prompt.shown_to(q)} == {q.subject}
    with pytest.raises(InputError, match="there are 0 few-shot examples of subject ''"):
        prompt.shown_to(APPLE)
    with pytest.raises(InputError, match="few-shot examples: 5 of subject 'law', expected 6"):
        Prompt().with_examples(pool, 6, "subject")
    with pytest.raises(InputError, match="few-shot examples: 10, expected 11"):
        Prompt().with_examples(pool, 11)


def test_examples_are_seeded_and_keep_their_order():
    pool = list(make_questions(30, seed=5))
    draws = [Prompt().with_examples(pool, 4, seed=seed).examples for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    places = [pool.index(e) for e in draws[0]]
    assert places == sorted(places)


def test_a_prompt_with_examples_survives_json():
    import json

    prompt = Prompt("chat-letter", examples=(APPLE,), system_prompt="x", letter_style="(A)")
    assert Prompt.of(json.loads(json.dumps(prompt.to_json()))) == prompt
    assert str(prompt) == "chat-letter, 1 shot"


# -- label words ------------------------------------------------------------------------------

FILM = Question("1", "Dull.", ("positive", "negative", "neither good nor bad"), 1)


def test_labels_are_read_as_whole_words_undivided(tokenizer):
    (encoded,) = encode([FILM], tokenizer, "labels")
    assert encoded.divisors == [1.0, 1.0, 1.0]
    for k, label in enumerate(FILM.choices):
        whole, scored = text_of(tokenizer, encoded, k)
        assert whole == context(FILM, "labels") + f" {label}"
        assert scored == f" {label}"


def test_a_label_that_begins_another_is_refused(tokenizer):
    film = Question("1", "Dull.", ("good", "bad", "good enough"), 1)
    with pytest.raises(InputError, match="label 'good enough' begins with 'good', which can then"):
        encode([film], tokenizer, "labels")


def test_show_marks_the_tokens_of_the_answers(tokenizer):
    letter = show(encode([APPLE], tokenizer, "letter")[0], tokenizer)
    text, *options = letter.rsplit("\n", 3)
    assert text == context(APPLE, "letter")
    assert {f"  2: ⟦{a}⟧ or ⟦{b}⟧  (right)" for a, b in (("B", " B"), (" B", "B"))} & {options[1]}
    cloze = show(encode([APPLE], tokenizer, "cloze")[0], tokenizer)
    text, *options = cloze.rsplit("\n", 3)
    assert text == context(APPLE, "cloze")
    for line, choice in zip(options, APPLE.choices, strict=True):
        tokens = [tokenizer.decode([t]) for t in tokenizer(f" {choice}")["input_ids"]]
        assert line.partition(": ")[2].startswith("".join(f"⟦{token}⟧" for token in tokens))
