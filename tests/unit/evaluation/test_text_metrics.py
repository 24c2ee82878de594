"""Without these, the metrics of answers would not be the numbers that people compare with those of others."""

import numpy
import pytest

from glmtune.evaluation import libraries
from glmtune.evaluation.measures import Measure, difference, mean
from glmtune.evaluation.text_metrics import METRICS, Answer, answer_measures, distinct, diversity, repetition, units

PREDICTIONS = ["今天天气很好，适合出门。", "我不知道。", "The cat sat on the mat", "", "好" * 3000]
LABELS = ["今天天气不错，适合出去玩。", "我知道答案。", "The cat is on the mat", "什么都没有说。", "好的"]


def answers(predictions: list[str], labels: list[str]) -> list[Answer]:
    return [Answer("问", label, text, True, len(text)) for text, label in zip(predictions, labels, strict=True)]


def test_every_metric_of_answers_is_shown() -> None:
    """Tables and reports go by `METRICS`; one that is missing there would be computed and never be seen."""
    some = answers(PREDICTIONS, LABELS)
    assert answer_measures(some).keys() | diversity(some).keys() <= {name for name, _, _ in METRICS}


def test_rouge_is_that_of_rouge_chinese_on_jiebas_words() -> None:
    import jieba
    from rouge_chinese import Rouge

    ours = libraries.rouge(PREDICTIONS[:3], LABELS[:3])
    cut = [[" ".join(jieba.cut(text)) for text in texts] for texts in (PREDICTIONS[:3], LABELS[:3])]
    theirs = Rouge().get_scores(*cut, avg=True)
    for name in ("rouge-1", "rouge-2", "rouge-l"):
        assert ours[name].value == pytest.approx(100 * theirs[name]["f"])


def test_rouge_1_by_hand() -> None:
    # 我 / 爱 / 北京 against 我 / 爱 / 上海: two of three words on both sides.
    assert libraries.rouge(["我爱北京"], ["我爱上海"])["rouge-1"].value == pytest.approx(100 * 2 / 3, abs=1e-4)
    assert libraries.rouge(["我爱北京"], ["我爱上海"])["rouge-2"].value == pytest.approx(100 * 1 / 2, abs=1e-4)


def test_an_empty_answer_has_no_rouge_and_a_very_long_one_is_no_error() -> None:
    scores = libraries.rouge(PREDICTIONS, LABELS)["rouge-l"].statistics[:, 0]
    assert scores[3] == 0
    assert 0 <= scores[4] < 1


def test_bleu_is_sacrebleus_of_the_whole_set() -> None:
    import sacrebleu

    theirs = sacrebleu.corpus_bleu(PREDICTIONS, [LABELS], tokenize="zh").score
    assert libraries.bleu(PREDICTIONS, LABELS).value == pytest.approx(theirs)


def test_bleu_by_hand() -> None:
    # 4 of 5 characters, 3 of 4 pairs, 2 of 3 triples, 1 of 2 quadruples, equally long.
    by_hand = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
    assert libraries.bleu(["甲乙丙丁戊"], ["甲乙丙丁己"]).value == pytest.approx(by_hand)


def test_units_are_characters_and_latin_words() -> None:
    assert units("用GPT4 回答，OK?") == ["用", "GPT4", "回", "答", "，", "OK", "?"]


def test_distinct_counts_ngrams_over_all_answers() -> None:
    assert distinct(["甲乙甲", "甲乙"], 1) == 2 / 5
    assert distinct(["甲乙甲", "甲乙"], 2) == 2 / 3
    assert distinct(["", ""], 1) == 0
    assert diversity(answers(["甲乙甲", "甲乙"], ["", ""])) == {
        "distinct-1": 40.0,
        "distinct-2": pytest.approx(200 / 3),
    }


def test_repetition_is_the_share_of_ngrams_seen_before() -> None:
    assert repetition("甲乙丙丁戊") == 0
    assert repetition("甲甲甲甲甲甲甲") == 3 / 4  # four n-grams of 4, all alike
    assert repetition("短") == 0


def test_answers_are_counted() -> None:
    given = [Answer("问", "甲", " 甲\n", True, 3), Answer("问", "乙", "甲乙", False, 4)]
    measures = {name: measure.value for name, measure in answer_measures(given).items()}
    assert measures["exact_match"] == 50
    assert measures["ended"] == 50
    assert measures["length"] == 2.5


def test_without_the_packages_the_other_metrics_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with_packages = answer_measures(answers(["甲"], ["甲"])).keys()
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    assert libraries.missing_packages() == ["rouge-chinese", "jieba", "sacrebleu"]
    without = answer_measures(answers(["甲"], ["甲"])).keys()
    assert with_packages - without == {"rouge-1", "rouge-2", "rouge-l", "bleu-4"}
    assert "exact_match" in without


def test_a_difference_that_is_everywhere_is_clear_and_noise_is_not() -> None:
    generator = numpy.random.default_rng(1)
    before = generator.normal(size=200)
    better = difference(mean(before + 0.1 + 0.01 * generator.normal(size=200)), mean(before))
    assert better is not None
    assert better.is_clear
    assert better.low < better.value < better.high
    assert better.value == pytest.approx(0.1, abs=0.01)
    other = difference(mean(generator.normal(size=200)), mean(before))
    assert other is not None
    assert other.high - other.low > 0.2
    noise = difference(mean(before + generator.normal(size=200) * 1e-3 * numpy.resize([1, -1], 200)), mean(before))
    assert noise is not None
    assert noise.low < 0.001


def test_the_interval_of_a_mean_is_that_of_the_central_limit_theorem() -> None:
    values = numpy.random.default_rng(0).normal(size=1000)
    found = difference(mean(values), mean(numpy.zeros(1000)))
    assert found is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 1000**0.5, rel=0.1)


def test_a_few_rows_have_no_interval() -> None:
    assert difference(mean([1.0, 2.0]), mean([0.0, 0.0])) is None


def test_a_ratio_is_drawn_as_a_ratio() -> None:
    weighted = Measure(numpy.asarray([[10.0, 1.0]] * 50 + [[10.0, 9.0]] * 50), lambda sums: float(sums[0] / sums[1]))
    assert weighted.value == 2
    found = difference(weighted, weighted)
    assert found is not None
    assert (found.low, found.high) == (0, 0)
