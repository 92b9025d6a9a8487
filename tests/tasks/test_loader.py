import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from sec_grpo import tasks
from sec_grpo.tasks import files, load_dataset_file, task_of

USER = [{"role": "user", "content": "8, 73, 96 to 841?"}]


def sec_row(**changes):
    """A row as in the authors' files."""
    return {
        "data_source": "countdown-easy-train",
        "prompt": USER,
        "ability": "math",
        "reward_model": {"ground_truth": {"numbers": "8,73,96", "target": 841}, "style": "rule"},
        "extra_info": {"difficulty": 1, "index": 7, "question": "?", "split": "train"},
        **changes,
    }


def write(path, rows):
    """Write rows in the format that the file's name says."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8"
        )
    else:
        path.write_text(json.dumps(rows), "utf-8")
    return path


formats = pytest.mark.parametrize("suffix", ["parquet", "json", "jsonl"])


@formats
def test_rows_of_the_authors_become_flat(tmp_path, suffix):
    data = load_dataset_file(write(tmp_path / f"rows.{suffix}", [sec_row(), sec_row()]))
    assert data.to_list() == 2 * [
        {
            "prompt": USER,
            "ground_truth": {"numbers": "8,73,96", "target": 841},
            "difficulty": 1,
            "index": 7,
            "data_source": "countdown-easy-train",
        }
    ]


@formats
def test_a_text_truth_and_a_type_are_kept(tmp_path, suffix):
    row = sec_row(
        reward_model={"ground_truth": "007", "style": "rule"},
        extra_info={"difficulty": 4.5, "index": 0, "type": "Algebra"},
        data_source="math_train",
    )
    data = load_dataset_file(write(tmp_path / f"rows.{suffix}", [row]))
    assert data[0] == {
        "prompt": USER,
        "ground_truth": "007",
        "difficulty": 4.5,
        "type": "Algebra",
        "index": 0,
        "data_source": "math_train",
    }


@formats
def test_rows_of_trl_pass_unchanged(tmp_path, suffix):
    rows = [
        {"prompt": "dacb>", "ground_truth": "abcd", "anything": [1, 2], "difficulty": 4},
        {"prompt": "ba>\u2028", "ground_truth": "ab", "anything": [], "difficulty": 2},
    ]
    assert load_dataset_file(write(tmp_path / f"rows.{suffix}", rows)).to_list() == rows


def test_json_columns_missing_from_the_first_row_are_kept(tmp_path):
    rows = [{"prompt": "a"}, {"prompt": "b", "difficulty": 2}]
    data = load_dataset_file(write(tmp_path / "rows.jsonl", rows))
    assert data["difficulty"] == [None, 2]


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [([1], "Expected bytes"), (3, "Expected bytes"), ({"a": 1}, "Expected bytes")],
)
def test_the_row_that_does_not_fit_is_named(tmp_path, monkeypatch, suffix, value, problem):
    monkeypatch.setattr(files, "_ROWS_AT_ONCE", 700)
    rows = [{"prompt": "a", "other": None if i % 3 else "b"} for i in range(2000)]
    rows[1234]["other"] = value
    path = write(tmp_path / f"rows.{suffix}", rows)
    expected = rf"do not fit one table: row 1234, column 'other' \({problem}.*one type in all rows"
    with pytest.raises(ValueError, match=expected):
        load_dataset_file(path)


def test_chunks_of_a_json_file_make_one_table(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_ROWS_AT_ONCE", 3)
    rows = [{"prompt": str(i), "n": i if i < 5 else i + 0.5} for i in range(10)]
    rows[7]["extra"] = {"a": [1]}
    data = load_dataset_file(write(tmp_path / "rows.jsonl", rows))
    assert data["prompt"] == [str(i) for i in range(10)]
    assert data["n"] == [*range(5), 5.5, 6.5, 7.5, 8.5, 9.5]
    assert data[7]["extra"] == {"a": [1]}
    assert data[0]["extra"] is None
    rows[8]["prompt"] = 8
    path = write(tmp_path / "rows.jsonl", rows[:6] + rows[8:])
    with pytest.raises(ValueError, match="do not fit one table.*incompatible|column 'prompt'"):
        load_dataset_file(path)


def test_an_integer_too_large_is_named(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 10**30}])
    with pytest.raises(ValueError, match="row 1, column 'n' .*more than 64 bits must be written"):
        load_dataset_file(path)


def test_large_parquet_files_are_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAPPED_BYTES", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [sec_row(extra_info={"difficulty": 1, "index": i}) for i in range(5)]
    path = write(tmp_path / "rows.parquet", rows)
    before = pyarrow.total_allocated_bytes()
    data = load_dataset_file(path)
    assert pyarrow.total_allocated_bytes() - before < 4096
    assert data["index"] == list(range(5))
    assert data[0]["ground_truth"] == {"numbers": "8,73,96", "target": 841}
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a readable parquet file"):
        load_dataset_file(path)


def test_columns_by_other_names(tmp_path):
    row = {"question": "1+1", "answer": "2", "meta": {"topic": "sums", "level": 3}}
    names = {"prompt": "question", "ground_truth": "answer", "type": "meta.topic"}
    path = write(tmp_path / "rows.jsonl", [row] * 2)
    assert load_dataset_file(path, columns=names).to_list() == 2 * [
        {"meta": row["meta"], "prompt": "1+1", "ground_truth": "2", "type": "sums"}
    ]
    # In verl's format: more of its fields, or another place of the truth.
    verl = sec_row(extra_info={"difficulty": 1, "index": 7, "topic": "x", "split": "train"})
    path = write(tmp_path / "verl.parquet", [verl])
    data = load_dataset_file(path, columns={"type": "extra_info.topic", "ability": "ability"})
    assert data.column_names == [
        "prompt", "ground_truth", "difficulty", "type", "index", "data_source", "ability",
    ]  # fmt: skip
    assert (data[0]["type"], data[0]["ability"]) == ("x", "math")
    for wrong in ("extra_info.nothing", "nothing", "ability.x"):
        with pytest.raises(ValueError, match=f"no column '{wrong}' for 'type'. Columns: data_sour"):
            load_dataset_file(path, columns={"type": wrong})


def test_loaded_data_sets():
    rows = [sec_row(extra_info={"difficulty": 1, "index": i}) for i in range(4)]
    data = datasets.Dataset.from_list(rows)
    assert load_dataset_file(data.select([3, 1]))["index"] == [3, 1]
    assert load_dataset_file(data.with_format("numpy"))["index"] == [0, 1, 2, 3]
    both = datasets.DatasetDict({"train": data, "test": data.shuffle(seed=1)})
    assert load_dataset_file(both)["index"] == [0, 1, 2, 3]
    order = [row["extra_info"]["index"] for row in both["test"]]
    assert load_dataset_file(both, split="test")["index"] == order
    with pytest.raises(ValueError, match="the DatasetDict: no split 'dev'. Splits: train, test"):
        load_dataset_file(both, split="dev")
    with pytest.raises(ValueError, match="Got list"):
        load_dataset_file(rows)


def test_a_directory_of_data_files(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "downloaded" / "data"
    folder.mkdir(parents=True)
    for split, count in (("train", 2), ("test", 1)):
        for shard in range(count):
            rows = [{"prompt": f"{split} {shard}", "ground_truth": "1"}]
            write(folder / f"{split}-{shard:05}-of-{count:05}.parquet", rows)
    assert load_dataset_file(folder.parent)["prompt"] == ["train 0", "train 1"]
    assert load_dataset_file(folder.parent, split="test")["prompt"] == ["test 0"]
    with pytest.raises(ValueError, match="downloaded: the data files in it could not be loaded"):
        load_dataset_file(folder.parent, split="dev")


def test_prompts_of_trl(tmp_path):
    """TRL's prompt-only formats, standard and conversational, in every kind of file."""
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    for name in ("a.parquet", "a.json", "a.jsonl"):
        for prompt in ("1+1?", chat):
            rows = [{"prompt": prompt, "solution": "2"}]
            assert load_dataset_file(write(tmp_path / name, rows)).to_list() == rows
    (tmp_path / "a.csv").write_text("prompt,solution\n1+1?,2\n")
    assert load_dataset_file(tmp_path / "a.csv")[0]["prompt"] == "1+1?"


def test_csv_keeps_answers_as_text(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,ground_truth,difficulty\n"1, 2\nand 3?",007,2\n3,1.50,3\n')
    assert load_dataset_file(path).to_list() == [
        {"prompt": "1, 2\nand 3?", "ground_truth": "007", "difficulty": 2},
        {"prompt": "3", "ground_truth": "1.50", "difficulty": 3},
    ]
    path.write_text("prompt,ground_truth_json\na,1\nb,[2]\n")
    assert load_dataset_file(path)["ground_truth_json"] == ["1", "[2]"]


def test_a_saved_data_set(tmp_path):
    data = tasks.get("sort").dataset(2, seed=0)
    data.save_to_disk(tmp_path / "one")
    assert load_dataset_file(tmp_path / "one").to_list() == data.to_list()
    both = datasets.DatasetDict({"train": data, "test": data.select([3, 1])})
    both.save_to_disk(tmp_path / "both")
    assert load_dataset_file(tmp_path / "both", split="test").to_list() == [data[3], data[1]]
    with pytest.raises(ValueError, match=r"both: no split 'validation'\. Splits: train, test"):
        load_dataset_file(tmp_path / "both", split="validation")


def test_a_data_set_that_is_a_selection_keeps_its_order(monkeypatch):
    rows = [sec_row(extra_info={"difficulty": 1, "index": i}) for i in range(5)]
    some = datasets.Dataset.from_list(rows).select([4, 0, 2])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: some)
    assert load_dataset_file("owner/name")["index"] == [4, 0, 2]


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"prompt": "a>"}]', "utf-8-sig")
    assert load_dataset_file(path).to_list() == [{"prompt": "a>"}]


def test_a_hub_name_goes_to_the_hub(monkeypatch):
    asked = []

    def load_dataset(path, split, name=None):
        asked.append((path, split, name))
        return datasets.Dataset.from_list([sec_row()])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_dataset_file("owner/name", split="test")["index"] == [7]
    assert load_dataset_file("owner/name", config="main")["index"] == [7]
    assert asked == [("owner/name", "test", None), ("owner/name", "train", "main")]


def test_a_hub_failure_says_what_to_check(monkeypatch):
    def load_dataset(name, split):
        raise ConnectionError("no route\nmore lines")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    expected = r"'owner/nam' .* split 'train' \(ConnectionError: no route\)\. Check the name"
    with pytest.raises(ValueError, match=expected):
        load_dataset_file("owner/nam")
    with pytest.raises(ValueError, match="Or did you mean the task 'zebra'"):
        load_dataset_file("zebr")


@pytest.mark.parametrize(
    "name", ["rows.parquet", "a/rows.jsonl", "/no/such/folder", "./rows", "a/b/c"]
)
def test_a_missing_file_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no file.* '{name}'"):
        load_dataset_file(name)


@pytest.mark.parametrize("kept", [0, 3, 100, -1])
def test_a_cut_off_parquet_file_is_named(tmp_path, kept):
    path = write(tmp_path / "rows.parquet", [sec_row()])
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"rows\.parquet: not a readable parquet file .*cut off"):
        load_dataset_file(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"prompt": "x"}\n\n{"prompt": \n', r"a\.jsonl, line 3: not JSON"),
        ("a.json", "", r"a\.json: not JSON"),
        ("a.json", "[" * 10**5, r"a\.json: not JSON"),
        ("a.json", '{"prompt": "x"}', r"a\.json: must hold an array.*Got dict.*\.jsonl"),
        ("a.json", '[{"prompt": "x"}, 3]', r"a\.json: row 1 must be an object\. Got int"),
        ("a.json", '[{"prompt": "x"}, {"prompt": [1]}]', r"a\.json: the rows do not fit one table"),
        ("a.json", "[]", r"a\.json: the data set is empty"),
        ("a.jsonl", "", r"a\.jsonl: the data set is empty"),
        ("a.csv", "prompt,x\n", r"a\.csv: the data set is empty"),
        ("a.csv", "", r"a\.csv: not a readable csv file"),
        ("a.csv", "prompt,x\na\n", r"a\.csv: not a readable csv file"),
        (
            "a.csv",
            "question,x\na,b\n",
            r"a\.csv: no column 'prompt'\. Columns: question, x\. Rename",
        ),
        (
            "a.jsonl",
            '{"prompt": "x"}\n{"prompt": "\\ud800"}\n',
            r"a\.jsonl: .*row 1, column 'prompt' .*surrogates not allowed",
        ),
        ("a.csv", "prompt,x,x\na,b,c\n", r"a\.csv: several columns are named 'x'"),
        ("a.txt", "x", r"a\.txt: the name must end in \.parquet, \.json"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_dataset_file(path)


def test_a_json_file_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes('[{"prompt": "é"}]'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.json: not UTF-8"):
        load_dataset_file(path)


def test_a_folder_without_a_data_set_is_named(tmp_path):
    with pytest.raises(ValueError, match="not a directory written by save_to_disk"):
        load_dataset_file(tmp_path)
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load_dataset_file(tmp_path)


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        (None, "no value"),
        ([], "an empty list of messages"),
        ([{"role": "user", "content": None}], "a message without content"),
        ([{"role": "user", "content": " "}], "a message without content"),
        ([*USER, {"role": None, "content": "x"}], "a message without a role"),
    ],
)
@pytest.mark.parametrize("at", [0, 5, 2345])
def test_a_row_without_a_chat_prompt_is_named(tmp_path, prompt, problem, at):
    rows = [sec_row() for _ in range(2400)]
    rows[at]["prompt"] = prompt
    path = write(tmp_path / "rows.parquet", rows)
    with pytest.raises(ValueError, match=rf"rows\.parquet: row {at}, column 'prompt': {problem}\."):
        load_dataset_file(path)


@pytest.mark.parametrize(
    ("prompt", "problem"), [("", "an empty string"), (" \n", "an empty string"), (None, "no value")]
)
def test_a_row_without_a_text_prompt_is_named(tmp_path, prompt, problem):
    path = write(tmp_path / "rows.jsonl", [{"prompt": "a>"}, {"prompt": prompt}])
    with pytest.raises(ValueError, match=rf"row 1, column 'prompt': {problem}\. .* Fix or remove"):
        load_dataset_file(path)


def test_a_prompt_of_another_type_is_named(tmp_path):
    with pytest.raises(ValueError, match="row 0, column 'prompt': a value of type int"):
        load_dataset_file(write(tmp_path / "a.json", [{"prompt": 3}]))
    with pytest.raises(ValueError, match="row 0, column 'prompt': a value of type list"):
        load_dataset_file(write(tmp_path / "a.json", [{"prompt": ["x"]}]))


@pytest.mark.parametrize("reward_model", [{"ground_truth": None, "style": "rule"}, None])
def test_a_row_without_a_ground_truth_is_named(tmp_path, reward_model):
    rows = [sec_row(), sec_row(), sec_row(reward_model=reward_model)]
    path = write(tmp_path / "rows.parquet", rows)
    with pytest.raises(
        ValueError, match=r"rows\.parquet: row 2 has no 'reward_model\.ground_truth'"
    ):
        load_dataset_file(path)


@pytest.mark.parametrize("reward_model", [{"style": "rule"}, "841"])
def test_a_reward_model_without_the_field_is_named(tmp_path, reward_model):
    path = write(tmp_path / "rows.parquet", [sec_row(reward_model=reward_model)])
    with pytest.raises(ValueError, match="'reward_model' has no field 'ground_truth'"):
        load_dataset_file(path)


def test_missing_extra_information_leaves_the_columns_out(tmp_path):
    row = sec_row()
    del row["extra_info"], row["data_source"]
    data = load_dataset_file(write(tmp_path / "rows.parquet", [row]))
    assert data.column_names == ["prompt", "ground_truth"]


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [
        ("arc_test", 400, ["prompt", "ground_truth", "difficulty", "index", "data_source"]),
        ("countdown_test", 400, ["prompt", "ground_truth", "difficulty", "index", "data_source"]),
        (
            "countdown_train",
            30_000,
            ["prompt", "ground_truth", "difficulty", "index", "data_source"],
        ),
        ("math_test", 307, ["prompt", "ground_truth", "difficulty", "index", "data_source"]),
        (
            "math_train",
            11_499,
            ["prompt", "ground_truth", "difficulty", "type", "index", "data_source"],
        ),
        ("zebra_test", 400, ["prompt", "ground_truth", "difficulty", "index", "data_source"]),
    ],
)
def test_the_authors_files(sec_data, name, rows, columns):
    path = sec_data / f"{name}.parquet"
    data = load_dataset_file(path)
    source = pyarrow.parquet.read_table(path).to_pylist()
    assert data.column_names == columns
    assert len(data) == len(source) == rows
    for row, original in zip(data, source, strict=True):
        assert row["prompt"] == original["prompt"]
        assert row["ground_truth"] == original["reward_model"]["ground_truth"]
        assert row["data_source"] == original["data_source"]
        for column in set(columns) & {"difficulty", "type", "index"}:
            assert row[column] == original["extra_info"][column]
    assert data[0]["prompt"][0]["role"] == "user"


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ("countdown-easy-train", "countdown"),
        ("countdown", "countdown"),
        ("test_Sort", "sort"),
        ({"data_source": "countdown-very_hard-test"}, "countdown"),
        ({"task": "sort", "data_source": "countdown-easy-train"}, "sort"),
        ({"task": None, "data_source": "countdown-easy-train"}, "countdown"),
        ("math_train", "math"),
        ("test_math", "math"),
        ("test_amc", "math"),
        ("test_aime", "math"),
    ],
)
def test_task_of(row, name):
    assert task_of(row) == name


def test_task_of_what_nobody_verifies():
    with pytest.raises(
        ValueError,
        match=r"no registered task verifies 'chess-easy-test'\. Known: arc_1d, countdown, math",
    ):
        task_of("chess-easy-test")
    with pytest.raises(ValueError, match=r"needs a column 'task' or 'data_source'.* Got: prompt"):
        task_of({"prompt": "x"})


def test_task_of_generated_and_loaded_rows(sec_data):
    assert task_of(tasks.get("sort").generate(2, 1, seed=0)[0]) == "sort"
    assert task_of(load_dataset_file(sec_data / "countdown_train.parquet")[0]) == "countdown"
