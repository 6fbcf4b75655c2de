import numpy as np
import pytest
import torch

from calibrant.errors import InputError
from calibrant.prompts import LETTERS, context
from calibrant.scoring.local import score
from helpers import make_model, make_questions

PROMPTS = ("letter", "chat-letter", "cloze", "cloze-char", "cloze-sum")


def plain_scores(model, tokenizer, question, prompt):
    """One unbatched, unpadded forward pass per option through plain transformers."""
    text = context(question, prompt, tokenizer)
    prompt = str(prompt).partition(",")[0]
    if "letter" in prompt:
        with torch.no_grad():
            logprobs = model(tokenizer(text, return_tensors="pt")["input_ids"]).logits[0, -1]
        probs = logprobs.float().softmax(-1)
        reads_as = [tokenizer.decode([i]).strip() for i in range(len(tokenizer))]
        return [
            sum(probs[i] for i, text in enumerate(reads_as) if text == letter).log().item()
            for letter in LETTERS[: len(question.choices)]
        ]
    scores = []
    for option in question.choices:
        start = len(tokenizer(text)["input_ids"])
        whole = tokenizer(f"{text} {option}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logprobs = model(whole).logits[0].float().log_softmax(-1)
        tokens = whole[0, start:]
        total = logprobs[start - 1 : -1].gather(1, tokens[:, None]).sum().item()
        divisor = {"cloze": len(tokens), "cloze-char": len(option)}.get(prompt, 1)
        scores.append(total / divisor)
    return scores


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize(
    "architecture", ["llama", "gpt2", "qwen2", "qwen3", "mistral", "opt", "gemma3-with-images"]
)
def test_scores_equal_plain_unbatched_transformers(tokenizer, architecture, prompt):
    model = make_model(architecture)
    questions = make_questions(12, k_max=6)
    table = score(model, tokenizer, questions, prompt=prompt, show_progress=False)
    for i, q in enumerate(questions):
        expected = plain_scores(model, tokenizer, q, prompt)
        np.testing.assert_allclose(table.logprobs[i, : len(expected)], expected, atol=1e-5)
        assert np.isneginf(table.logprobs[i, len(expected) :]).all()


def test_one_token_letters_are_what_the_merged_ones_are_made_of(tokenizer, model):
    from calibrant.prompts import Prompt

    questions = make_questions(6)
    tables = [
        score(model, tokenizer, questions, prompt=Prompt("letter", tokens), show_progress=False)
        for tokens in ("merged", "single")
    ]
    q = questions[0]
    ids = tokenizer(context(q, "letter"), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logprobs = model(ids).logits[0, -1].log_softmax(-1)
    for k, letter in enumerate(LETTERS[: len(q.choices)]):
        after_blank, bare = (tokenizer.convert_tokens_to_ids(t + letter) for t in ("Ġ", ""))
        assert tables[1].logprobs[0, k] == pytest.approx(logprobs[after_blank].item(), abs=1e-5)
        both = torch.logaddexp(logprobs[after_blank], logprobs[bare]).item()
        assert tables[0].logprobs[0, k] == pytest.approx(both, abs=1e-5)
    assert (tables[0].option_mass > tables[1].option_mass).all()
    assert [t.provenance["prompt_settings"]["letter_tokens"] for t in tables] == [
        "merged",
        "single",
    ]


def test_the_gradient_of_merged_letters_is_that_of_their_summed_probability(tokenizer, model):
    from calibrant.prompts import encode
    from calibrant.scoring.batch import collate, option_scores

    encoded = encode(list(make_questions(3)), tokenizer, "letter")
    seen = []
    model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out) or out)
    scores, _ = option_scores(model, collate(encoded, pad_token=2, packed=True))
    (found,) = torch.autograd.grad(scores[0, 1], seen[0])
    probs = seen[0].detach().softmax(-1)  # (Q, V)
    tokens = [token for _, token in encoded[0].reads[1]]
    expected = -probs[0]
    expected[tokens] += probs[0, tokens] / probs[0, tokens].sum()
    torch.testing.assert_close(found[0], expected, atol=1e-6, rtol=1e-4)
    assert not found[1:].any()


def test_permuted_options_are_scored_as_shown_and_kept_in_their_own_order(tokenizer, model):
    from calibrant.questions import Question

    questions = make_questions(4, k_min=3, k_max=5)
    table = score(model, tokenizer, questions, permutations="cyclic", show_progress=False)
    assert table.questions == tuple(q.id for q in questions for _ in q.choices)
    for i, name in enumerate(table.questions):
        q = next(q for q in questions if q.id == name)
        order = [k for k in table.orders[i] if k >= 0]
        shown = Question("x", q.question, tuple(q.choices[k] for k in order), 0)
        by_letter = plain_scores(model, tokenizer, shown, "letter")
        np.testing.assert_allclose(table.logprobs[i, order], by_letter, atol=1e-5)
        assert table.labels[i] == q.answer
    assert table.provenance["data_fingerprint"] == questions.fingerprint
    with pytest.raises(InputError, match="'cloze' lists no options"):
        score(model, tokenizer, questions, prompt="cloze", permutations=2, show_progress=False)


def test_pmi_subtracts_each_options_own_log_probability(tokenizer, model):
    questions = make_questions(6, k_max=4)
    pmi = score(model, tokenizer, questions, prompt="cloze-pmi", show_progress=False)
    start = len(tokenizer("Answer:")["input_ids"])
    for i, q in enumerate(questions):
        given = plain_scores(model, tokenizer, q, "cloze-sum")
        for k, choice in enumerate(q.choices):
            bare = tokenizer(f"Answer: {choice}", return_tensors="pt")["input_ids"]
            with torch.no_grad():
                logprobs = model(bare).logits[0].log_softmax(-1)
            own = logprobs[start - 1 : -1].gather(1, bare[0, start:, None]).sum().item()
            assert pmi.logprobs[i, k] == pytest.approx(given[k] - own, abs=2e-5)
    assert np.isnan(pmi.option_mass).all()


def test_an_option_text_is_asked_for_on_its_own_only_once(tokenizer, model):
    from calibrant.questions import Question

    questions = [Question(str(i), f"word {i} ?", ("yes", "no"), 0) for i in range(40)]
    seen = []
    model.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    score(model, tokenizer, questions, prompt="cloze-sum", show_progress=False)
    without = sum(seen)
    seen.clear()
    score(model, tokenizer, questions, prompt="cloze-pmi", show_progress=False)
    assert sum(seen) - without <= 2 * len(tokenizer("Answer: yes")["input_ids"])


def test_label_words_score_as_sequences_and_their_mass_is_recorded(tokenizer, model):
    from calibrant.questions import Question

    labels = ("red", "green stone", "blue")
    films = [Question(str(i), f"river {i}", labels, i % 3) for i in range(5)]
    table = score(model, tokenizer, films, prompt="labels", show_progress=False)
    for i, q in enumerate(films):
        expected = plain_scores(model, tokenizer, q, "labels")
        np.testing.assert_allclose(table.logprobs[i], expected, atol=1e-5)
        assert table.option_mass[i] == pytest.approx(np.exp(expected).sum(), abs=1e-6)


@pytest.mark.parametrize("prompt", ["letter", "chat-letter", "cloze", "labels"])
def test_examples_change_the_answers_as_plain_transformers_does(tokenizer, prompt):
    from calibrant.prompts import Prompt
    from calibrant.questions import Question

    model = make_model(max_position_embeddings=1024)
    pool = list(make_questions(4, seed=8, prefix="e"))
    q = Question("q", "Which of red is dog 1 ?", ("dog 1", "cat 2"), 0)
    few = Prompt(prompt, examples=tuple(pool), shots=2)
    (found,) = score(model, tokenizer, [q], prompt=few, show_progress=False).logprobs
    np.testing.assert_allclose(found, plain_scores(model, tokenizer, q, few), atol=1e-5)
    assert np.abs(found - plain_scores(model, tokenizer, q, prompt)).max() > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("prompt", ["letter", "cloze"])
def test_batching_order_and_padding_side_change_nothing(tokenizer, prompt, attention):
    from copy import deepcopy

    model = make_model()
    model.set_attn_implementation(attention)
    questions = make_questions(40, k_max=10)
    left, right = deepcopy(tokenizer), deepcopy(tokenizer)
    left.padding_side, right.padding_side = "left", "right"
    reference = score(
        model, right, questions, prompt=prompt, batch_tokens=1, show_progress=False
    ).logprobs
    order = np.random.default_rng(0).permutation(40)
    for tok in (left, right):
        for tokens in (300, 5000):
            shuffled = score(
                model,
                tok,
                questions.select(order),
                prompt=prompt,
                batch_tokens=tokens,
                show_progress=False,
            ).logprobs
            finite = np.isfinite(reference[order])
            assert (np.isfinite(shuffled) == finite).all()
            assert np.abs(shuffled[finite] - reference[order][finite]).max() < 1e-5


def test_option_mass_is_the_letters_share_of_the_vocabulary(tokenizer, model):
    questions = make_questions(5)
    table = score(model, tokenizer, questions, show_progress=False)
    np.testing.assert_allclose(table.option_mass, np.exp(table.logprobs).sum(axis=1), atol=1e-7)
    assert (table.option_mass < 1).all()
    cloze = score(model, tokenizer, questions, prompt="cloze", show_progress=False)
    assert np.isnan(cloze.option_mass).all()


def test_only_positions_that_are_read_reach_the_vocabulary(tokenizer, model):
    """The language-model head sees one position per letter question, and no prefix for cloze."""
    questions = make_questions(10)
    seen = []
    width = model.config.hidden_size
    model.lm_head.register_forward_hook(
        lambda module, args, out: seen.append(args[0].numel() // width)
    )
    score(model, tokenizer, questions, show_progress=False)
    assert sum(seen) == 10
    seen.clear()
    score(model, tokenizer, questions, prompt="cloze", show_progress=False)
    option_tokens = sum(
        len(tokenizer(f" {choice}")["input_ids"]) for q in questions for choice in q.choices
    )
    assert sum(seen) <= option_tokens


def test_half_precision_models_are_softmaxed_in_float32(tokenizer):
    """In bf16 probabilities a row of letters could not resolve 1e-3; log-probabilities can."""
    table = score(
        make_model().to(torch.bfloat16), tokenizer, make_questions(5), show_progress=False
    )
    assert (np.abs(table.logprobs[np.isfinite(table.logprobs)] * 2**8 % 1) > 0).mean() > 0.5


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gemma3-with-images"])
def test_a_question_longer_than_the_context_is_refused(tokenizer, architecture):
    length = "n_positions" if architecture == "gpt2" else "max_position_embeddings"
    model = make_model(architecture, **{length: 16})
    with pytest.raises(InputError, match=r"question 'q\d+' takes \d+ tokens, the model's context"):
        score(model, tokenizer, make_questions(3), show_progress=False)


def test_a_sliding_window_is_honoured(tokenizer):
    """Rows longer than the window must not be packed: a ready-made mask would widen it."""
    model = make_model("mistral", sliding_window=24)
    questions = make_questions(6)
    table = score(model, tokenizer, questions, prompt="cloze", show_progress=False)
    for i, q in enumerate(questions):
        expected = plain_scores(model, tokenizer, q, "cloze")
        np.testing.assert_allclose(table.logprobs[i, : len(expected)], expected, atol=1e-5)


def test_the_table_says_where_it_comes_from(tokenizer, model):
    model.config._name_or_path = "tiny"
    questions = make_questions(3)
    table = score(model, tokenizer, questions, prompt="cloze", show_progress=False)
    assert table.provenance["model"] == "tiny"
    assert table.provenance["prompt"] == "cloze"
    assert table.provenance["data_fingerprint"] == questions.fingerprint
    assert table.ids == tuple(q.id for q in questions)
    assert not model.training


def test_training_mode_is_given_back(tokenizer, model):
    model.train()
    score(model, tokenizer, make_questions(2), show_progress=False)
    assert model.training


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("prompt", ["letter", "cloze"])
@pytest.mark.parametrize("row_tokens", [0, 1, 150, 100_000])
def test_questions_sharing_a_row_do_not_see_each_other(tokenizer, prompt, attention, row_tokens):
    from calibrant.prompts import encode
    from calibrant.scoring.batch import collate, option_scores

    model = make_model()
    model.set_attn_implementation(attention)
    encoded = encode(list(make_questions(15, k_max=6)), tokenizer, prompt)
    reference, question = option_scores(
        model, collate(encoded, pad_token=2, packed=False, question_loss=True)
    )
    batch = collate(encoded, pad_token=2, packed=True, row_tokens=row_tokens, question_loss=True)
    scores, shared_question = option_scores(model, batch)
    torch.testing.assert_close(scores, reference, atol=1e-5, rtol=0)
    torch.testing.assert_close(shared_question, question, atol=0, rtol=1e-6)
    if row_tokens == 100_000:
        assert batch["input_ids"].shape == (1, sum(q.n_tokens for q in encoded))


def test_a_compiled_model_keeps_its_positions(tokenizer, model):
    """A compiled wrapper hides the forward's signature; what is asked of it must not change."""
    questions = make_questions(4)
    expected = score(model, tokenizer, questions, prompt="cloze", show_progress=False).logprobs
    compiled = torch.compile(model)
    with torch.compiler.set_stance("force_eager"):  # the wrapper alone, which is what hides it
        found = score(compiled, tokenizer, questions, prompt="cloze", show_progress=False).logprobs
    np.testing.assert_allclose(found, expected, atol=1e-5)
