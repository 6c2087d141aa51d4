from training.data.datasets.catalog import load_dataset


def test_no_diagnosis_is_on_both_sides() -> None:
    split = load_dataset("icd10-chapter", size=300, seed=1)
    trained, held_out = (
        {chat.messages[0]["content"] for chat in side} for side in (split.train, split.test)
    )
    assert not trained & held_out
    assert all(text.startswith("Diagnosis: ") for text in trained | held_out)
