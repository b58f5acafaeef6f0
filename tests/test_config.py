from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

import gdmix
from gdmix.config import (
    ColumnRoles,
    FeatureBag,
    FixedEffect,
    MetricSpec,
    ModelConfig,
    RandomEffect,
    RunConfig,
    parse_metric,
)
from gdmix.errors import ConfigError, GdmixError

EXAMPLES = sorted((Path(gdmix.__file__).parent / "examples").glob("*.yaml"))
GOOD = """\
data: {train: rows/train.parquet, validation: [a.csv, b.csv]}
columns: {response: label}
features:
  user: [age, gender]
  wide: {columns: [wide_indices, wide_values], feature_list: wide.csv}
  tags: tags
coordinates:
  global:   {type: fixed_effect, features: [user, wide], l2: 1e-3}
  per-user: {type: random_effect, entity: user_id, features: tags, tolerance: 1e-6}
  per-day.x: {type: random_effect, entity: day}
metrics: [auc, "ndcg@5:user_id"]
validate: off
output: runs/one
"""
NO_FOLDER = (
    "can't name a coordinate: it becomes a folder beside others; use letters, digits, '-', '_', '.'"
)
KNOWN_METRICS = (
    "auc, aupr, logloss, rmse, mae, poisson_loss, auc:<column>, precision@<k>:<column>, "
    "ndcg@<k>:<column>, mrr:<column>"
)


def parse(text: str, tmp_path: Path, **overrides: str) -> RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return RunConfig.from_yaml(path, {k.replace("__", "."): v for k, v in overrides.items()})


def mistakes(text: str, tmp_path: Path, overrides: dict[str, str] | None = None) -> list[str]:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_yaml(path, overrides)
    return str(caught.value).replace(str(path), "run.yaml").splitlines()


class TestYaml:
    def test_what_is_read(self, tmp_path: Path) -> None:
        config = parse(GOOD, tmp_path)
        assert config.data.train == ("rows/train.parquet",)
        assert config.data.validation == ("a.csv", "b.csv")
        assert config.columns == ColumnRoles(response="label")
        assert [config.columns.column(r) for r in ("uid", "response")] == ["uid", "label"]
        assert config.features["user"] == FeatureBag(columns=("age", "gender"))
        assert config.features["wide"].feature_list == Path("wide.csv")
        assert config.features["tags"].columns == ("tags",)
        assert list(config.coordinates) == ["global", "per-user", "per-day.x"]
        first, second, third = config.coordinates.values()
        assert first == FixedEffect("global", features=["user", "wide"], l2=0.001)
        assert isinstance(second, RandomEffect)
        assert (second.name, second.features, second.tolerance) == ("per-user", ("tags",), 1e-6)
        assert (third.features, third.l2, third.intercept) == ((), 1.0, True)
        assert config.entities == ("user_id", "day")
        assert config.group_columns == ("user_id",)
        assert config.validate_mode == "off"
        assert (config.task, config.passes, config.select) == ("logistic_regression", 1, "last")
        assert config.output == Path("runs/one")

    @pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
    def test_examples(self, path: Path, tmp_path: Path) -> None:
        config = RunConfig.from_yaml(path)
        assert set(config.used_features) >= {"user", "movie"}
        config.to_yaml(tmp_path / "run.yaml")
        assert RunConfig.from_yaml(tmp_path / "run.yaml") == config

    def test_what_is_written_reads_as_the_same(self, tmp_path: Path) -> None:
        config = parse(GOOD, tmp_path, passes="3", tolerance="1e-4", threads="2")
        config.to_yaml(tmp_path / "again.yaml")
        assert RunConfig.from_yaml(tmp_path / "again.yaml") == config
        tree = YAML(typ="safe", pure=True).load((tmp_path / "again.yaml").read_text())
        assert list(tree)[:3] == ["task", "columns", "features"]
        assert list(tree["coordinates"]) == ["global", "per-user", "per-day.x"]
        assert tree["validate"] == "off"
        assert tree["coordinates"]["per-day.x"]["regularize_intercept"] is True

    # Text that looks like something else needs quotes, by the rules of YAML 1.2 and not 1.1.
    @settings(derandomize=True, deadline=None, max_examples=80)
    @given(
        st.lists(
            st.text(min_size=1, max_size=6)
            | st.sampled_from(
                ["no", "on", "~", "null", "1e3", "0o7", "0x1F", "017", "1:30", "2001-01-01", "=",
                 "<<", "- a", "a: b", "#", "é", "\u2028", "1_000", ".inf", "true", "'", '"'],
            ),
            min_size=1,
            unique=True,
        ),
        st.floats(0, 1e300),
    )  # fmt: skip
    def test_any_name_and_number_survives(
        self, tmp_path_factory: pytest.TempPathFactory, names: list[str], l2: float
    ) -> None:
        names = [n for n in names if n.isprintable()] or ["x"]
        config = RunConfig(
            data={"train": names[0]},
            columns={"uid": names[-1]},
            features={"bag": names},
            coordinates={
                "fixed": {"type": "fixed_effect", "features": "bag", "l2": l2},
                "random": {"type": "random_effect", "entity": names[0]},
            },
            output="out",
        )
        path = tmp_path_factory.mktemp("config") / "run.yaml"
        config.to_yaml(path)
        assert RunConfig.from_yaml(path) == config

    def test_a_section_without_keys(self, tmp_path: Path) -> None:
        text = GOOD.replace("columns: {response: label}", "columns:\n  # response: label")
        assert parse(text, tmp_path).columns == ColumnRoles()

    @pytest.mark.parametrize("word", ["1e-3", "1E-3", "0.001", ".001", "1.0e-3", "+1e-3"])
    def test_numbers(self, word: str, tmp_path: Path) -> None:
        config = parse(GOOD.replace("1e-3", word), tmp_path)
        assert config.coordinates["global"].l2 == 0.001

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "is empty"),
            ("# nothing\n", "is empty"),
            ("- a\n", "expected keys and values, found list"),
            ("just text", "expected keys and values, found str"),
            ("a: [1\nb: 2\n", "line 2: not valid YAML: expected ',' or ']', but got ':'"),
            ("a: 1\n\tb: 2\n", "line 2: not valid YAML: found character '\\t'"),
            ("a: 1\nb: 2\na: 3\n", 'line 3: not valid YAML: found duplicate key "a"'),
            ("a:\n  b: 1\n  b: 1\n", 'line 3: not valid YAML: found duplicate key "b"'),
            ("a: *b\n", "line 1: not valid YAML: found undefined alias"),
            ("a: !!python/object:os.system {}\n", "line 1: not valid YAML: could not determine"),
        ],
    )
    def test_no_yaml(self, text: str, said: str, tmp_path: Path) -> None:
        (line,) = mistakes(text, tmp_path)
        assert line.startswith(f"run.yaml: {said}")

    def test_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "run.yaml").write_bytes(b"a: \xff\n")
        for name, said in {
            "rum.yaml": "no such file (did you mean 'run.yaml'?)",
            "none/x.yaml": "no such file",
            ".": "can't be read: Is a directory",
            "run.yaml": "can't be read: it is not UTF-8 text",
        }.items():
            with pytest.raises(ConfigError) as caught:
                RunConfig.from_yaml(tmp_path / name)
            assert str(caught.value) == f"{tmp_path / name}: {said}"


def changed(*replacements: tuple[str, str]) -> str:
    text = GOOD
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new)
    return text


MISTAKES: dict[str, tuple[tuple[tuple[str, str], ...], list[str]]] = {
    "unknown key": (
        (("validate: off", "pases: 3\nvalidat: off"),),
        [
            "pases: unknown key (did you mean 'passes'?)",
            "validat: unknown key (did you mean 'validate'?)",
        ],
    ),
    "unknown key of a section": (
        (("{response: label}", "{respons: label}"), ("{train: rows", "{trian: x, train: rows")),
        [
            "columns.respons: unknown key (did you mean 'response'?)",
            "data.trian: unknown key (did you mean 'train'?)",
        ],
    ),
    "unknown key of a bag": (
        (("feature_list", "feature_lst"),),
        ["features.wide.feature_lst: unknown key (did you mean 'feature_list'?)"],
    ),
    "unknown key of a coordinate": (
        (("l2: 1e-3", "l_2: 1, entity: x"), ("entity: day", "entity: day, entities: x")),
        [
            "coordinates.global.l_2: unknown key (did you mean 'l2'?)",
            "coordinates.global.entity: unknown key",
            "coordinates.per-day.x.entities: unknown key (did you mean 'entity'?)",
        ],
    ),
    "missing keys": (
        (("output: runs/one\n", ""), ("train: rows/train.parquet, ", ""), ("entity: day", "l2: 1")),
        [
            "coordinates.per-day.x.entity: is required",
            "data.train: is required",
            "output: is required",
        ],
    ),
    "wrong values": (
        (
            ("l2: 1e-3", "l2: -1, max_iterations: 0, intercept: maybe"),
            ("tolerance: 1e-6", "tolerance: 1"),
            ("validate: off", "validate: lax\npasses: 1.5\nthreads: none\nselect: worst"),
        ),
        [
            "coordinates.global.intercept: should be a valid boolean (got 'maybe')",
            "coordinates.global.l2: should be 0 or more, or auto or auto_per_feature (got -1)",
            "coordinates.global.max_iterations: should be greater than or equal to 1 (got 0)",
            "coordinates.per-user.tolerance: should be less than 1 (got 1)",
            "passes: should be a valid integer (got 1.5)",
            "select: should be 'last' or 'best' (got 'worst')",
            "validate: should be 'strict', 'drop' or 'off' (got 'lax')",
            "threads: should be a valid integer (got 'none')",
        ],
    ),
    "not finite": (
        (("l2: 1e-3", "l2: .nan"), ("validate: off", "tolerance: .inf")),
        [
            "coordinates.global.l2: should be 0 or more, or auto or auto_per_feature (got nan)",
            "tolerance: should be a finite number (got inf)",
        ],
    ),
    "unknown task": (
        (("data:", "task: logistic\ndata:"),),
        [
            "task: should be 'logistic_regression', 'linear_regression' or "
            "'poisson_regression' (got 'logistic')"
        ],
    ),
    "unknown type": (
        (
            ("type: fixed_effect", "type: fixed_effects"),
            ("type: random_effect, entity: day", "l2: 1"),
        ),
        [
            "coordinates.global: unknown type 'fixed_effects' (did you mean 'fixed_effect'?); "
            "known: fixed_effect, random_effect, factorization, deep, custom, external_scores",
            "coordinates.per-day.x: needs `type`: one of fixed_effect, random_effect, "
            "factorization, deep, custom, external_scores",
        ],
    ),
    "shapes": (
        (
            ("{response: label}", "label"),
            ("[age, gender]", "{columns: 3}"),
            ("  tags: tags", "  tags: []"),
            ("{train: rows/train.parquet,", "{train: [],"),
        ),
        [
            "columns: should hold keys and values (got 'label')",
            "features.user.columns: should be a list (got 3)",
            "features.tags.columns: is empty",
            "data.train: is empty",
        ],
    ),
    "empty text": (
        (("entity: day", "entity: ''"), ("[a.csv, b.csv]", "''")),
        ["coordinates.per-day.x.entity: is empty", "data.validation: is empty"],
    ),
    "keys that are no text": (
        (("  per-day.x:", "  3:"), ("  tags: tags", "  7: tags")),
        ["features.7: should be text (got 7)", "coordinates.3: should be text (got 3)"],
    ),
    "column twice in a bag": (
        (("[age, gender]", "[age, gender, age]"),),
        ["features.user.columns: column 'age' is listed twice"],
    ),
    "column twice in a coordinate": (
        (("[age, gender]", "[age, tags]"), ("features: tags", "features: [user, tags]")),
        [
            "coordinates.per-user.features: column 'tags' is in the bags 'user' and 'tags'; "
            "a coordinate takes it once"
        ],
    ),
    "bag twice": (
        (("[user, wide]", "[user, user]"),),
        ["coordinates.global: bag 'user' is listed twice"],
    ),
    "no such bag": (
        (("[user, wide]", "[usr]"),),
        [
            "coordinates.global.features: no feature bag 'usr' (did you mean 'user'?); "
            "bags under `features`: user, wide, tags"
        ],
    ),
    "nothing to fit": (
        (("entity: day", "entity: day, intercept: false"),),
        ["coordinates.per-day.x: has neither features nor an intercept"],
    ),
    "entities that are none": (
        (("entity: user_id", "entity: []"), ("entity: day", "entity: [day, '', 3]")),
        [
            "coordinates.per-user.entity: needs two columns, or one without brackets",
            "coordinates.per-day.x.entity.1: is empty",
            "coordinates.per-day.x.entity.2: should be text (got 3)",
        ],
    ),
    "bins that are none": (
        (
            ("entity: user_id", "entity: {column: age, bin: [1]}"),
            ("entity: day", "entity: [day, {column: age, bins: [2, 1]}]"),
        ),
        [
            "coordinates.per-user.entity.bins: is required",
            "coordinates.per-user.entity.bin: unknown key (did you mean 'bins'?)",
            "coordinates.per-day.x.entity.1.bins: should ascend",
        ],
    ),
    "a column twice in an entity": (
        (("entity: day", "entity: [day, {column: day, bins: [1]}]"),),
        ["coordinates.per-day.x.entity: column 'day' is listed twice"],
    ),
    "two entities of one name": (
        (("entity: user_id", "entity: [a, b]"), ("entity: day", "entity: a+b")),
        [
            "coordinates.per-day.x.entity: 'a+b' names another entity in coordinates.per-user; "
            "rename the column"
        ],
    ),
    "limits that exclude each other": (
        (("entity: day", "entity: day, min_active_rows: 5, max_active_rows: 3"),),
        ["coordinates.per-day.x: min_active_rows (5) is more than max_active_rows (3)"],
    ),
    "no limits": (
        (("entity: day", "entity: day, min_active_rows: 0, max_active_rows: 0, reweight: x"),),
        [
            "coordinates.per-day.x.min_active_rows: should be greater than or equal to 1 (got 0)",
            "coordinates.per-day.x.max_active_rows: should be greater than or equal to 1 (got 0)",
            "coordinates.per-day.x.reweight: should be a valid boolean (got 'x')",
        ],
    ),
    "names that are no folders": (
        (
            ("  per-user:", "  per/user:"),
            ("  global:", "  run.log:"),
            ("  tags: tags", "  ../x: y"),
        ),
        [
            "features: '../x' can't name a feature bag: it becomes a file; "
            "use letters, digits, '-', '_', '.'",
            f"coordinates.run.log: 'run.log' {NO_FOLDER}",
            f"coordinates.per/user: 'per/user' {NO_FOLDER}",
        ],
    ),
    "a name within": (
        (("entity: day", "entity: day, name: x"),),
        ["coordinates: 'per-day.x' is the coordinate's name already; remove its key `name`"],
    ),
    "no coordinates": (
        (("coordinates:", "coordinates: {}\nignored:"),),
        ["coordinates: is empty", "ignored: unknown key"],
    ),
    "a list of coordinates": (
        (("coordinates:", "coordinates: [{type: fixed_effect}]\nignored:"),),
        ["coordinates: coordinate 1 has no name", "ignored: unknown key"],
    ),
    "unknown metric": (
        (("[auc, ", "[acu, "),),
        [f"metrics: unknown metric 'acu' (did you mean 'auc'?); known: {KNOWN_METRICS}"],
    ),
    "metric without its k": (
        (("ndcg@5:", "ndcg:"),),
        [f"metrics: unknown metric 'ndcg:user_id'; known: {KNOWN_METRICS}"],
    ),
    "best of nothing": (
        ((", validation: [a.csv, b.csv]", ""), ("validate: off", "select: best")),
        ["select: best needs data.validation"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str, tmp_path: Path) -> None:
    replacements, lines = MISTAKES[name]
    expected = [f"run.yaml: {line}" for line in lines]
    assert mistakes(changed(*replacements), tmp_path) == expected


ODD = [None, [], "x", -1, math.nan, [[1]], {"a": None}, {1: 2}]


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(tree, dict | list):
        for key in tree if isinstance(tree, dict) else range(len(tree)):
            found += places(tree[key], (*path, key))
    return found


def test_no_value_anywhere_is_a_defect_of_ours(tmp_path: Path) -> None:
    tree = YAML(typ="safe", pure=True).load(GOOD)
    for place in places(tree):
        for odd in ODD:
            spoiled = copy.deepcopy(tree)
            node = spoiled
            for key in place[:-1]:
                node = node[key]
            node[place[-1]] = odd
            with (tmp_path / "run.yaml").open("w", encoding="utf-8") as file:
                YAML(typ="safe", pure=True).dump(spoiled, file)
            try:
                RunConfig.from_yaml(tmp_path / "run.yaml")
            except GdmixError as error:
                assert all(": " in line for line in str(error).splitlines())


class TestOverrides:
    def test_every_kind_of_key(self, tmp_path: Path) -> None:
        config = parse(
            GOOD,
            tmp_path,
            **{
                "passes": "7",
                "coordinates.per-user.l2": "1e-2",
                "coordinates.per-day.x.l2": "5",
                "features.user": "[height]",
                "columns.uid": "id",
                "data.train": "[x.csv, y.csv]",
                "output": '"a: b"',
                "metrics": "auc",
                "threads": "null",
                "coordinates.new": "{type: fixed_effect}",
            },
        )
        assert config.passes == 7
        assert config.coordinates["per-user"].l2 == 0.01
        assert config.coordinates["per-day.x"].l2 == 5
        assert config.features["user"].columns == ("height",)
        assert config.columns == ColumnRoles(uid="id", response="label")
        assert config.data.train == ("x.csv", "y.csv")
        assert config.output == Path("a: b")
        assert config.metrics == ("auc",)
        assert list(config.coordinates)[-1] == "new"

    def test_a_section_that_the_file_lacks(self, tmp_path: Path) -> None:
        text = GOOD.replace("columns: {response: label}\n", "")
        assert parse(text, tmp_path, columns__uid="id").columns.uid == "id"
        assert parse(f"{text}columns:\n", tmp_path, columns__uid="id").columns.uid == "id"

    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            (
                "coordinates.per-usr.l2",
                "3",
                "--set coordinates.per-usr.l2: there is no 'per-usr' under 'coordinates' "
                "(did you mean 'per-user'?)",
            ),
            ("output.x", "3", "--set output.x: 'output' has no keys of its own"),
            (
                "features.user.columns.x",
                "3",
                "--set features.user.columns.x: 'features.user' has no keys of its own",
            ),
            ("passes", "[", "--set passes: '[' is not a YAML value"),
            ("passes", "many", "run.yaml: passes: should be a valid integer (got 'many')"),
            ("pases", "3", "run.yaml: pases: unknown key (did you mean 'passes'?)"),
            ("task", "[1]", "run.yaml: task: should be 'logistic_regression', "
             "'linear_regression' or 'poisson_regression'"),
        ],
    )  # fmt: skip
    def test_mistakes(self, key: str, value: str, said: str, tmp_path: Path) -> None:
        assert mistakes(GOOD, tmp_path, {key: value}) == [said]


class TestPython:
    def test_specs(self) -> None:
        assert FixedEffect("g", features="a").features == ("a",)
        assert FixedEffect("g").regularize_intercept is False
        assert RandomEffect("r", entity="e").regularize_intercept is True

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (
                lambda: FixedEffect("g", l_2=1),
                "FixedEffect('g'): l_2: unknown key (did you mean 'l2'?)",
            ),
            (lambda: FixedEffect("g", entity="e"), "FixedEffect('g'): entity: unknown key"),
            (lambda: RandomEffect("r"), "RandomEffect('r'): entity: is required"),
            (
                lambda: RandomEffect("r", entity="e", l2=-1, intercept=False),
                "RandomEffect('r'): l2: should be 0 or more, or auto or auto_per_feature (got -1)",
            ),
            (
                lambda: RandomEffect("r", entity="e", intercept=False),
                "RandomEffect('r'): has neither features nor an intercept",
            ),
            (
                lambda: FixedEffect("a b"),
                f"FixedEffect('a b'): 'a b' {NO_FOLDER}",
            ),
        ],
    )
    def test_mistakes_of_a_spec(self, make: Any, said: str) -> None:
        with pytest.raises(ConfigError) as caught:
            make()
        assert str(caught.value) == said

    def test_a_list_of_specs(self) -> None:
        specs = [FixedEffect("g", features="a"), RandomEffect("r", entity="e")]
        config = ModelConfig.of(coordinates=specs, features={"a": ["x"]})
        assert list(config.coordinates.values()) == specs
        for bad, said in [
            ([FixedEffect("g"), FixedEffect("g")], "coordinates: two coordinates are named 'g'"),
            ([FixedEffect("g"), FixedEffect()], "coordinates: coordinate 2 has no name"),
            ([], "coordinates: is empty"),
        ]:
            with pytest.raises(ConfigError) as caught:
                ModelConfig.of(coordinates=list(bad))
            assert str(caught.value) == said

    def test_used_features(self) -> None:
        features = {"a": ["x"], "b": ["y"], "c": ["z"]}
        specs = [FixedEffect("g", features="c"), RandomEffect("r", entity="e", features="a")]
        config = ModelConfig.of(coordinates=specs, features=features)
        assert list(config.used_features) == ["a", "c"]

    @pytest.mark.parametrize(
        ("task", "metrics"),
        [
            ("logistic_regression", ("auc", "logloss")),
            ("linear_regression", ("rmse", "mae")),
            ("poisson_regression", ("poisson_loss", "rmse")),
        ],
    )
    def test_metrics_by_task(self, task: Any, metrics: tuple[str, ...]) -> None:
        for given_metrics in ({}, {"metrics": []}, {"metrics": None}):
            config = ModelConfig.of(coordinates=[FixedEffect("g")], task=task, **given_metrics)
            assert config.metrics == metrics


class TestMetricNames:
    @pytest.mark.parametrize(
        ("name", "spec"),
        [
            ("auc", MetricSpec("auc")),
            ("poisson_loss", MetricSpec("poisson_loss")),
            ("auc:user", MetricSpec("auc", None, "user")),
            ("mrr:a:b@3", MetricSpec("mrr", None, "a:b@3")),
            ("precision@10:user", MetricSpec("precision", 10, "user")),
            ("ndcg@1:user id", MetricSpec("ndcg", 1, "user id")),
        ],
    )
    def test_good(self, name: str, spec: MetricSpec) -> None:
        assert parse_metric(name) == spec

    @pytest.mark.parametrize(
        "name",
        [
            "",
            "AUC",
            "auc:",
            "rmse:user",
            "precision",
            "precision@0:u",
            "ndcg@x:u",
            "auc@3:u",
            "ndcg",
        ],
    )
    def test_bad(self, name: str) -> None:
        with pytest.raises(ConfigError, match="^unknown metric "):
            parse_metric(name)

    def test_what_is_known_of_them(self) -> None:
        assert parse_metric("ndcg@3:u").higher_is_better
        assert not parse_metric("rmse").higher_is_better
        assert parse_metric("precision@3:u").needs_binary_labels
        assert not parse_metric("ndcg@3:u").needs_binary_labels
