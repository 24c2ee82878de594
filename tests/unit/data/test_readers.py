"""Without these, a broken data file would end in a traceback instead of a sentence that names file and row."""

import csv
import json
from urllib.error import URLError

import datasets
import huggingface_hub
import pyarrow
import pyarrow.parquet
import pytest

from glmtune.data import json_rows
from glmtune.data.readers import find_files, read_rows
from glmtune.data.rows import Row, RowFault, Source
from glmtune.errors import DataError

ROW = {"instruction": "你好", "input": "", "output": "皇上万福"}


def write(tmp_path, name: str, content: str | bytes):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path):
    """The rows of a file, and what is wrong with others."""
    found = list(read_rows(path))
    return [each for each in found if isinstance(each, Row)], [each for each in found if isinstance(each, RowFault)]


def values(path):
    rows, faults = read(path)
    assert faults == []
    return [row.values for row in rows]


def test_array_lines_csv_and_parquet_give_the_same_rows(tmp_path):
    rows = [ROW, {**ROW, "output": '有,逗号\n和 "引号"'}]
    paths = [tmp_path / name for name in ("a.json", "a.jsonl", "a.csv", "a.parquet")]
    paths[0].write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")
    paths[1].write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    cells = 'instruction,input,output\n你好,,皇上万福\n你好,,"有,逗号\n和 ""引号"""\n'
    paths[2].write_text(cells, encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), paths[3])
    assert [values(path) for path in paths] == [rows] * 4


def test_the_form_of_json_is_found_by_looking(tmp_path):
    lines = json.dumps(ROW) + "\n" + json.dumps(ROW)
    assert values(write(tmp_path, "lines.json", lines)) == [ROW, ROW]
    assert values(write(tmp_path, "array.jsonl", json.dumps([ROW]))) == [ROW]
    assert values(write(tmp_path, "one.jsonl", json.dumps(ROW))) == [ROW]


def test_sources_have_row_and_line(tmp_path):
    rows, _ = read(write(tmp_path, "a.jsonl", "\n" + json.dumps(ROW) + "\r\n\n" + json.dumps(ROW)))
    assert [(row.source.row, row.source.line) for row in rows] == [(1, 2), (2, 4)]
    rows, _ = read(write(tmp_path, "a.csv", 'a,b\n1,"x\ny"\n\n2,z\n'))
    assert [(row.source.row, row.source.line) for row in rows] == [(1, 2), (2, 5)]
    assert str(Source("a.csv", 2, 5)) == "a.csv, row 2 (line 5)"
    assert str(Source("a.json", 2)) == "a.json, row 2"


def test_long_cells_of_csv_are_read_where_a_long_has_32_bits(tmp_path, monkeypatch):
    """As on Windows."""
    real = csv.field_size_limit

    def limit(size):
        if size > 2**31 - 1:
            raise OverflowError("Python int too large to convert to C long")
        return real(size)

    monkeypatch.setattr(csv, "field_size_limit", limit)
    path = tmp_path / "long.csv"
    path.write_text(f"question,answer\nq,{'a' * 200_000}\n", encoding="utf-8")
    rows, _ = read(path)
    assert len(rows[0].values["answer"]) == 200_000


def test_numbers_in_csv_are_strings(tmp_path):
    assert values(write(tmp_path, "a.csv", "question,answer\n007,1.50\n")) == [{"question": "007", "answer": "1.50"}]


def test_byte_order_mark_is_accepted(tmp_path):
    for name, text in (("a.json", json.dumps([ROW])), ("a.jsonl", json.dumps(ROW))):
        assert values(write(tmp_path, name, b"\xef\xbb\xbf" + text.encode())) == [ROW]
    assert values(write(tmp_path, "a.csv", b"\xef\xbb\xbfa,b\n1,2\n")) == [{"a": "1", "b": "2"}]


def test_line_separators_inside_texts_do_not_end_a_line(tmp_path):
    row = {**ROW, "output": "a\u2028b\x85c"}
    assert values(write(tmp_path, "a.jsonl", json.dumps(row, ensure_ascii=False))) == [row]


def test_nulls_of_columnar_files_are_left_out(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "x"}, {"role": "tool", "name": "n", "content": "y"}]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == rows


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.json", "", "the file is empty"),
        ("a.json", " \n ", "the file is empty"),
        ("a.jsonl", "\n\n", "the file is empty"),
        ("a.parquet", "", "the file is empty"),
        ("a.json", "[]", "the file holds no rows"),
        ("a.csv", "instruction,output\n", "the file holds no rows"),
        ("a.json", '[{"a": 1},\n {"a" 2}]', "line 2, column 7: not JSON: Expecting ':' delimiter; found '2}]'"),
        ("a.json", '[{"a": "b"},]', "column 13: not JSON"),
        ("a.json", "[{“a”: 1}]", "column 3: not JSON: .*; found “, where JSON needs straight double quotes"),
        ("a.json", "[{'a': 1}]", "column 3: not JSON: .*; found ', where JSON needs straight double quotes"),
        ("a.json", '[{"a": "b"}', "line 1, column 12: not JSON: .*the text ends too early"),
        ("a.json", "hello", "line 1, column 1: not JSON"),
        ("a.json", "[" * 100_000, "brackets are nested too deeply"),
        ("a.json", "[" + "1" * 5000 + "]", "a whole number has too many digits; at most 4,300 are read"),
        ("a.json", '{"a": 1}', r"expected an array of rows at the top level, found an object.*Put \[ and \]"),
        ("a.json", '{"v": 1,\n"data": [{"a": 1}]}', 'its "data" holds an array of 1. Write that array alone'),
        ("a.json", '"text"', "expected an array of rows at the top level, found a string"),
        ("a.csv", 'a,b\n1,2\n3,"x\n', "line 3: not CSV: unexpected end of data. Check the quotes"),
        ("a.csv", "a,b,a\n1,2,3\n", "line 1: the header has duplicate columns: a"),
        ("a.parquet", "PAR1 no", "not a Parquet file, or a damaged one"),
        ("plain", "PK", r"\.parquet, found no suffix$"),
        ("a.xlsx", "PK", r"expected a file named \.json, \.jsonl, \.csv, \.parquet, found '\.xlsx'"),
        (
            "a.json",
            "你好".encode("gbk"),
            "found byte 0xc4 at offset 0; it looks like GBK.*iconv -f GBK -t UTF-8",
        ),
        ("a.json", "[1]".encode("utf-16"), "found byte 0xff at offset 0; it looks like UTF-16"),
        ("a.csv", b"a,b\n1,2\n\xff,3\n", "line 3: expected UTF-8, found byte 0xff at offset 8"),
    ],
)
def test_a_broken_file_has_one_clear_error(tmp_path, name, content, fault):
    path = write(tmp_path, name, content)
    with pytest.raises(DataError, match=fault) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "faults"),
    [
        ("a.json", '[{"a": 1}, 2, "x", null]', ["row 2: expected an object, found a number", "row 3: ", "row 4: "]),
        (
            "a.jsonl",
            '{"a": 1}\n{"a": }\n[1]\n',
            ["row 2, line 2, column 7: not JSON", "row 3 (line 3): expected"],
        ),
        ("a.csv", "a,b\n1\n1,2\n1,2,3\n", ["row 1 (line 2): expected 2 cells", "row 3 (line 4): expected 2 cells"]),
        ("a.json", '[{"a": 1}, {"b": {"c": 1, "c": 2}}]', ['row 2: the key "c" occurs twice in one object']),
        ("a.jsonl", '{"a": 1}\n{"b": 1, "b": 1}', ['row 2 (line 2): the key "b" occurs twice in one object']),
        ("a.json", '[{"a": {"x": 1, "x": 2}, "a": 3}, {"a": {}}]', ['row 1: the key "a" occurs twice in one object']),
    ],
)
def test_all_faults_of_rows_are_collected(tmp_path, name, content, faults):
    path = write(tmp_path, name, content)
    _, found = read(path)
    assert len(found) == len(faults)
    for sentence, start in zip(found, faults, strict=True):
        assert sentence.startswith(f"{path}, {start}")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DataError, match=r"no\.json: there is no such file\. Check the path"):
        read(tmp_path / "no.json")
    with pytest.raises(DataError, match=r"there is no \.json, \.jsonl, \.csv, \.parquet in this folder"):
        find_files(tmp_path)
    with pytest.raises(DataError, match=r"\*\.json: no file matches this pattern"):
        find_files(f"{tmp_path}/*.json")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("b.json,a.csv", ["b.json", "a.csv"]),
        ("b.json, a.csv,", ["b.json", "a.csv"]),
        ("one,two.json", ["one,two.json"]),
        ("[x].json", ["[x].json"]),
        ("inside", ["inside/c.jsonl", "inside/d.json"]),
        ("*.json", ["[x].json", "b.json", "one,two.json"]),
        ("in*/*.json*,b.json", ["inside/c.jsonl", "inside/d.json", "b.json"]),
        ("**/d.json", ["inside/d.json"]),
        ("owner/name:train[:100]", ["owner/name:train[:100]"]),
        ("none.json", ["none.json"]),
    ],
)
def test_a_name_stands_for_files_in_a_fixed_order(tmp_path, monkeypatch, given, found):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inside").mkdir()
    for name in ("d.json", "c.jsonl", "README.md", "._d.json"):
        write(tmp_path / "inside", name, "")
    for name in ("b.json", "a.csv", "one,two.json", "[x].json"):
        write(tmp_path, name, "")
    assert find_files(given) == found


@pytest.mark.parametrize("name", ["~nosuchuser/x.json", "a" * 300 + ".json"], ids=["user", "long"])
def test_names_that_no_file_can_have(name):
    with pytest.raises(DataError, match=name[:20]):
        read(name)


class TestHub:
    """Names of the form owner/name; nothing is downloaded."""

    @staticmethod
    def serve(monkeypatch, answer):
        asked = []

        def load_dataset(name, split):
            asked.append((name, split))
            if isinstance(answer, Exception):
                raise answer
            return datasets.Dataset.from_list(answer)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    @pytest.mark.parametrize(
        ("name", "asked"),
        [
            ("owner/set", ("owner/set", "train")),
            ("owner/set:test", ("owner/set", "test")),
            ("owner/set.v2:train[:10%]", ("owner/set.v2", "train[:10%]")),
        ],
    )
    def test_rows(self, monkeypatch, tmp_path, name, asked):
        monkeypatch.chdir(tmp_path)
        seen = self.serve(monkeypatch, [{**ROW, "extra": None}, {**ROW, "extra": "x"}])
        rows, _ = read(name)
        assert seen == [asked]
        assert [row.values for row in rows] == [ROW, {**ROW, "extra": "x"}]
        assert str(rows[1].source) == f"{name}, row 2"

    def test_an_existing_path_wins(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "owner").mkdir()
        write(tmp_path, "owner/set.json", json.dumps([ROW]))
        seen = self.serve(monkeypatch, [])
        assert values("owner/set.json") == [ROW]
        assert seen == []

    @pytest.mark.parametrize(
        "error",
        [
            ConnectionError("Couldn't reach 'owner/set' on the Hub (ConnectError)\nmore"),
            ValueError("Unknown split \"train\". Should be one of ['test']."),
            datasets.exceptions.DatasetNotFoundError("Dataset 'owner/set' doesn't exist"),
        ],
    )
    def test_what_cannot_be_loaded_is_one_clear_error(self, monkeypatch, tmp_path, error):
        monkeypatch.chdir(tmp_path)
        self.serve(monkeypatch, error)
        with pytest.raises(DataError, match=r"owner/set: there is no such file, and the hub data set cannot") as caught:
            read("owner/set")
        assert str(error).splitlines()[0] in str(caught.value)

    def test_a_hub_that_cannot_be_reached_is_asked_only_once(self, monkeypatch, tmp_path):
        """Its client retries for half a minute, with a line for each time."""
        asked = []

        def load(*_, **__):
            asked.append(huggingface_hub.constants.HF_HUB_OFFLINE)
            raise ConnectionError("offline mode is enabled")

        def refuse(*_, **__):
            raise URLError("Name or service not known")

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("glmtune.data.hub.urlopen", refuse)
        monkeypatch.setattr(datasets, "load_dataset", load)
        with pytest.raises(DataError, match=r"the hub cannot be reached \(Name or service not known\)"):
            read("owner/set")
        assert asked == [True]
        assert not huggingface_hub.constants.HF_HUB_OFFLINE

    def test_a_missing_file_never_asks_the_hub(self, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        seen = self.serve(monkeypatch, [])
        with pytest.raises(DataError, match="there is no such file"):
            read("data/train.json")
        assert seen == []


ODD_ARRAY = '\ufeff \n[ {"a": "]},{[\\" \\\\", "b": [1, {"c": null}]},\r\n\t{"a": "你好\u2028"} , {"a": 1.5e3}\n]\n '
BROKEN_ARRAYS = ['[{"a": 1}, {"a": 2}', '[{"a": 1} {"a": 2}]', '[{"a": 1},]', '[{"a": 1}]x', '[{"a": 1]', "[,1]", "["]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
def test_an_array_is_the_same_however_it_is_cut_into_pieces(tmp_path, monkeypatch, chunk):
    """Or a file that is too large to be read at once would give other rows, or none."""
    monkeypatch.setattr(json_rows, "_CHUNK", chunk)
    path = write(tmp_path, "a.json", ODD_ARRAY)
    assert values(path) == json.loads(ODD_ARRAY.lstrip("\ufeff"))
    rows, faults = read(write(tmp_path, "numbers.json", "[ 0.5,1e5, -2.5E-3]"))
    assert (rows, len(faults)) == ([], 3)
    for broken in BROKEN_ARRAYS:
        path = write(tmp_path, "b.json", broken)
        with pytest.raises(DataError) as caught:
            read(path)
        with pytest.raises(json.JSONDecodeError) as theirs:
            json.loads(broken)
        assert f"column {theirs.value.colno}: not JSON: {theirs.value.msg}" in str(caught.value)
