"""`MixedModel`: the estimator a data scientist uses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast, get_args, overload

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from gdmix import memory
from gdmix.config import (
    CoordinateSpec,
    FeatureBag,
    ModelConfig,
    Prior,
    Task,
    ValidateMode,
    parse_metric,
)
from gdmix.data.dataset import Dataset, load_rows
from gdmix.data.read import Source, open_rows
from gdmix.data.write import check_replaceable, replaced_folder, temporary_folder
from gdmix.descent import Descent, Schedule, Step, descend
from gdmix.encoding import encode_rows
from gdmix.engines.local import LocalEngine
from gdmix.errors import ConfigError, DataError, ModelError, did_you_mean
from gdmix.glm.losses import inverse_link
from gdmix.glm.threads import available_threads
from gdmix.model.base import CoordinateModel
from gdmix.model.mixed_model import TrainedModel
from gdmix.model.store import is_model_folder, read_model, write_model
from gdmix.model.uncertainty import drawn, standard_errors

if TYPE_CHECKING:
    from gdmix.engines.base import Engine, Workspace

F64 = NDArray[np.float64]
Kind = Literal["response", "link", "components", "std_error", "sample"]


class MixedModel:
    """A generalized mixed model, trained by block coordinate descent.

    Follows scikit-learn's conventions (`get_params`, `set_params`, `clone`, ``fit(X, y)``).

    Parameters
    ----------
    coordinates
        Specs (`FixedEffect`, `RandomEffect`, `Factorization`, `DeepFixedEffect`, `CustomEffect`,
        `ExternalScores`) in the order in which a pass trains them.
    features
        Feature bags: name to columns, or to a mapping of `columns` and other settings of a bag.
    task
        ``logistic_regression``, ``linear_regression`` or ``poisson_regression``.
    columns
        Column roles: a mapping of ``uid``, ``response``, ``weight``, ``offset`` to columns.
    passes
        Rounds over all coordinates, at most; default 1, with ``l2="auto"`` 10.
    solver
        ``joint``: after the passes, fit all coordinates at once, to the joint optimum.
    tolerance
        Stop when a pass changes the joint objective by less than this share of it.
    select
        ``last``: the model after the last step; ``best``: by the first validation metric.
    early_stopping
        Stop after that many passes that did not better the first validation metric.
    metrics
        Such as ``auc``, ``logloss``, ``ndcg@10:user_id``; default by task.
    validate
        What bad rows do: ``strict`` raises, ``drop`` leaves them out, ``off`` doesn't look.
    initial_model
        Path of a model to start from: its coordinates are matched by name, their coefficients
        and scores count from the first pass on. A coordinate that is `locked` stays as it is there.
    prior
        An earlier model as a Gaussian prior: ``{"model": DIR, "weight": 1.0, "forgetting": 0.8}``.
        It starts from there, too.
    seed
        Of samples of rows (`max_active_rows`).
    threads
        Default: all cores of this process.
    memory_limit
        Bytes, or such as ``4GB``: rows and models beyond it lie in scratch files while `fit`
        works. Default: six tenths of what the machine, or the container, has.
    scratch
        Folder for these files; default: the system's folder for temporary files.
    engine
        Where `fit` works: a `gdmix.engines.spark.engine.SparkEngine`; default: this machine. With
        it rows may also be a Spark DataFrame.

    Attributes
    ----------
    model_ : TrainedModel
        After `fit` or `load`.
    history_ : list of Step
        One entry per coordinate and pass, after `fit`.
    converged_ : bool or None
        Whether the convergence test ended the training; None without `tolerance`.
    estimate_ : Estimate or None
        With ``l2="auto"``: the variance components and the log marginal likelihood.

    Raises
    ------
    ConfigError
        One line per mistake in the parameters.

    Examples
    --------
    >>> import numpy as np
    >>> from gdmix import FixedEffect, MixedModel, RandomEffect
    >>> rows = {"user": ["a", "a", "b", "b"] * 25, "x": np.arange(100.0) % 7,
    ...         "response": [0, 1, 1, 1] * 25}
    >>> model = MixedModel([FixedEffect("global", features="all"),
    ...                     RandomEffect("per-user", entity="user")],
    ...                    features={"all": ["x"]}, passes=3)
    >>> model.fit(rows).predict(rows).shape
    (100,)
    """

    def __init__(
        self,
        coordinates: Sequence[CoordinateSpec],
        *,
        features: Mapping[str, Sequence[str] | Mapping[str, Any] | FeatureBag] | None = None,
        task: Task = "logistic_regression",
        columns: Mapping[str, str] | None = None,
        passes: int | None = None,
        solver: Literal["descent", "joint"] = "descent",
        tolerance: float | None = None,
        select: Literal["last", "best"] = "last",
        early_stopping: int | None = None,
        metrics: Sequence[str] = (),
        validate: ValidateMode = "strict",
        initial_model: str | Path | None = None,
        prior: Mapping[str, Any] | Prior | None = None,
        seed: int = 0,
        threads: int | None = None,
        memory_limit: int | str | None = None,
        scratch: str | Path | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.coordinates = coordinates
        self.features = features
        self.task = task
        self.columns = columns
        self.passes = passes
        self.solver = solver
        self.tolerance = tolerance
        self.select = select
        self.early_stopping = early_stopping
        self.metrics = metrics
        self.validate = validate
        self.initial_model = initial_model
        self.prior = prior
        self.seed = seed
        self.threads = threads
        self.memory_limit = memory_limit
        self.scratch = scratch
        self.engine = engine
        self._config()

    def _config(self) -> ModelConfig:
        return ModelConfig.of(
            coordinates=self.coordinates,
            features=dict(self.features or {}),
            task=self.task,
            columns=dict(self.columns or {}),
            passes=self.passes,
            solver=self.solver,
            tolerance=self.tolerance,
            select=self.select,
            early_stopping=self.early_stopping,
            metrics=self.metrics,
            validate=self.validate,
            initial_model=self.initial_model,
            prior=self.prior,
            seed=self.seed,
            threads=self.threads,
            memory_limit=self.memory_limit,
            scratch=self.scratch,
        )

    def fit(
        self, X: Source, y: ArrayLike | None = None, *, validation: Source | None = None
    ) -> Self:
        """Train on rows.

        Parameters
        ----------
        X
            Path, list of paths, or a polars, pandas or Arrow frame, with the response column.
        y
            (n,) the response, if it is not a column of `X`.
        validation
            Rows on which metrics are computed, of any of the same kinds; without them the
            metrics are those of the training rows.

        Raises
        ------
        DataError
            One line per finding.
        """
        if not self.coordinates and hasattr(self, "model_"):
            raise ConfigError("a loaded model can only predict: a model folder has no settings")
        config = self._config()
        if config.select == "best" and validation is None:
            raise ConfigError("select='best' needs validation rows")
        if config.early_stopping is not None and validation is None:
            raise ConfigError("early_stopping needs validation rows")
        for name in config.judged_on_validation if validation is None else ():
            raise ConfigError(
                f"coordinates.{name}.training: judge_on_validation needs validation rows"
            )
        if y is not None:
            X = _with_response(X, np.asarray(y), config)
        with (
            temporary_folder(config.scratch) as folder,
            memory.limited(config.memory_limit, folder),
        ):
            result, workspace = train(config, X, validation, engine=self.engine)
        self.model_ = workspace.trained_model(result.models)
        self.history_ = result.history
        self.converged_ = result.converged
        self.estimate_ = result.estimate
        return self

    @overload
    def predict(
        self,
        X: Source,
        kind: Literal["response", "link", "std_error", "sample"] = "response",
        *,
        external: Mapping[str, Source] | None = None,
        seed: int | None = None,
    ) -> F64: ...
    @overload
    def predict(
        self,
        X: Source,
        kind: Literal["components"],
        *,
        external: Mapping[str, Source] | None = None,
        seed: int | None = None,
    ) -> dict[str, F64]: ...
    def predict(
        self,
        X: Source,
        kind: Kind = "response",
        *,
        external: Mapping[str, Source] | None = None,
        seed: int | None = None,
    ) -> F64 | dict[str, F64]:
        """Score rows; entities that training did not see add 0.

        Parameters
        ----------
        X
            Rows, as in `fit`; the response is not needed. A row that can't be used is an error
            also where `validate` is ``drop``.
        kind
            ``response``: the mean (for the logistic task a probability); ``link``: the linear
            predictor, offset included; ``components``: each coordinate's share of it;
            ``std_error``: the standard error of the linear predictor; ``sample``: the mean under
            one draw of all coefficients (Thompson sampling).

            The last two take coefficients to be normal, with the covariance dispersion times H^-1
            where the Hessian was saved (`save_hessian`); else independent, with the variances that
            were (`variance`: of ``simple`` ones each is that of a coefficient whose neighbours are
            known, and the error too small if features are correlated). Coordinates are taken to
            be independent, those without coefficients to be known exactly. An entity without a
            model adds 0: how much entities differ is not in the model.
        external
            These rows' scores, a path or a frame, of each `ExternalScores` coordinate.
        seed
            Of ``sample``. Another seed is another draw; the same one is the same draw of the
            same model, whatever rows are asked for, in whatever order.

        Returns
        -------
        numpy.ndarray or dict
            (n,) in row order; of ``components`` one such array per coordinate.

        Raises
        ------
        ModelError
            If ``std_error`` or ``sample`` needs variances that were not asked for in training.
        """
        if kind not in get_args(Kind):
            raise ConfigError(f"kind '{kind}' is none of {', '.join(get_args(Kind))}")
        check_seed(seed, needed=kind == "sample")
        model = self._fitted()
        rows = self._load(X)
        threads = self.threads or available_threads()
        if kind == "std_error":
            return standard_errors(model, rows, threads)
        if seed is not None:
            model = drawn(model, rows, seed)
        components = model.components(rows, threads, external)
        if kind == "components":
            return components
        link = sum(components.values(), rows.offset)
        return link if kind == "link" else inverse_link(model.loss, link)

    def predict_proba(self, X: Source, *, external: Mapping[str, Source] | None = None) -> F64:
        """Return (n, 2) probabilities of the labels 0 and 1, for the logistic task."""
        if self._fitted().task != "logistic_regression":
            raise ConfigError(f"predict_proba is for logistic_regression, not {self.task}")
        positive = self.predict(X, external=external)
        return np.column_stack([1.0 - positive, positive])

    def encode(self, X: Source, coordinate: str, side: str = "document") -> NDArray[np.float32]:
        """Return the vector of a side of each row, by a deep coordinate's network.

        In a column of fixed-size lists it is a dense feature bag, such as of a random effect.

        Parameters
        ----------
        X
            Rows, as in `fit`; only what the coordinate needs of them.
        coordinate
            A `DeepFixedEffect` that has sides.
        side
            One of these.

        Returns
        -------
        numpy.ndarray
            (n, dim) in row order.

        Raises
        ------
        ModelError
            If there is no such coordinate or side.
        """
        own = self._fitted().only(coordinate)
        mode: ValidateMode = "off" if self.validate == "off" else "strict"
        threads = self.threads or available_threads()
        return encode_rows(own, X, coordinate, side, mode, threads)

    def coefficients(self, coordinate: str, entity: object = None) -> pa.Table:
        """Return coefficients as an Arrow table: ``name``, ``term``, ``value`` (, ``variance``).

        Parameters
        ----------
        entity
            Of a random effect, one entity's; without it all, with a column ``entity``.

        Raises
        ------
        ModelError
            If the coordinate or the entity has no model.
        """
        return self._fitted().coefficient_table(coordinate, entity)

    def save(self, path: str | Path) -> None:
        """Write the model folder; an earlier model there is replaced.

        Raises
        ------
        OutputError
            If the folder holds anything else, or can't be written.
        """
        self._fitted()
        folder = Path(path)
        check_replaceable(folder, overwrite=True, is_ours=is_model_folder)
        with replaced_folder(folder) as staging:
            write_model(self.model_, staging)

    @staticmethod
    def load(path: str | Path, *, allow_pickle: bool = False) -> MixedModel:
        """Read a model or run folder, to predict with; it does not hold what training needs.

        Parameters
        ----------
        allow_pickle
            Whether estimators that were saved as pickles (`CustomEffect` of scikit-learn's, or of
            your own) may be opened, which runs code of whoever wrote the model.

        Raises
        ------
        ModelError
            If it is none, is damaged, or was written by a later version.
        """
        trained = read_model(Path(path))
        trained = trained.with_pickles_trusted() if allow_pickle else trained
        loaded = MixedModel.__new__(MixedModel)
        for name, parameter in inspect.signature(MixedModel.__init__).parameters.items():
            if name != "self":
                empty = parameter.default is inspect.Parameter.empty
                setattr(loaded, name, () if empty else parameter.default)
        loaded.task = trained.task
        loaded.features = dict(trained.bags)
        loaded.columns = {k: v for k, v in trained.columns.model_dump().items() if v}
        loaded.model_ = trained
        return loaded

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's parameters."""
        names = inspect.signature(type(self).__init__).parameters
        return {name: getattr(self, name) for name in names if name != "self"}

    def set_params(self, **params: Any) -> Self:
        """Set parameters of the constructor; `fit` checks that they go together."""
        known = self.get_params()
        for name in params:
            if name not in known:
                raise ConfigError(
                    f"MixedModel has no parameter '{name}'{did_you_mean(name, known)}"
                )
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __sklearn_is_fitted__(self) -> bool:
        """Tell scikit-learn whether `fit` has run."""
        return hasattr(self, "model_")

    def __sklearn_tags__(self) -> Any:
        """Describe the estimator to scikit-learn, which alone calls this."""
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        logistic = self.task == "logistic_regression"
        return Tags(
            estimator_type="classifier" if logistic else "regressor",
            target_tags=TargetTags(required=False),
            classifier_tags=ClassifierTags(multi_class=False) if logistic else None,
            regressor_tags=None if logistic else RegressorTags(),
            input_tags=InputTags(two_d_array=False, string=True, allow_nan=False),
        )

    @property
    def classes_(self) -> NDArray[np.int64]:
        """Labels in the order of the columns of `predict_proba`."""
        return np.array([0, 1])

    def __repr__(self) -> str:
        names = ", ".join(spec.name for spec in self.coordinates)
        state = "fitted" if self.__sklearn_is_fitted__() else "not fitted"
        names = names or ", ".join(self.model_.coordinates if hasattr(self, "model_") else ())
        return f"MixedModel({self.task}: {names}; {state})"

    def _fitted(self) -> TrainedModel:
        if not hasattr(self, "model_"):
            raise ModelError("this MixedModel is not fitted yet; call fit or load first")
        return self.model_.in_memory()

    def _load(self, X: Source) -> Dataset:
        model = self._fitted()
        # There is a prediction per row: none is dropped.
        mode: ValidateMode = "off" if self.validate == "off" else "strict"
        return load_rows(X, model.row_schema(), model.indices, model.task, mode)


def train(
    config: ModelConfig,
    train_rows: Source,
    validation_rows: Source | None,
    *,
    engine: Engine | None = None,
    fits: Path | None = None,
    on_start: Callable[[int, str], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
    state: Descent | None = None,
    on_state: Callable[[Descent], None] | None = None,
    on_pass: Callable[[int, Workspace, Mapping[str, CoordinateModel]], None] | None = None,
) -> tuple[Descent, Workspace]:
    """Bind a configuration to rows and descend.

    Parameters
    ----------
    fits
        Folder in which long fits keep their state, so that a killed one can go on.
    on_start, on_step
        Called before (pass number, coordinate) and after each step.
    state, on_state
        Where to go on, and what is called after each step with where descent is.
    on_pass
        Called after each pass with its number and the models.
    """
    workspace = (engine or LocalEngine(fits)).prepare(config, train_rows, validation_rows)
    result = descend_in(
        workspace,
        config,
        on_start=on_start,
        on_step=on_step,
        state=state,
        on_state=on_state,
        on_pass=None if on_pass is None else lambda n, models: on_pass(n, workspace, models),
    )
    return result, workspace


def descend_in(
    workspace: Workspace,
    config: ModelConfig,
    *,
    on_start: Callable[[int, str], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
    state: Descent | None = None,
    on_state: Callable[[Descent], None] | None = None,
    on_pass: Callable[[int, Mapping[str, CoordinateModel]], None] | None = None,
) -> Descent:
    """Descend as a configuration says, on rows that it is bound to; parameters as in `train`."""
    schedule = Schedule(
        config.passes,
        config.tolerance,
        config.select,
        parse_metric(config.metrics[0]).higher_is_better,
        config.early_stopping,
    )
    return descend(
        workspace.coordinates,
        workspace.scores,
        schedule,
        workspace.recentre,
        workspace.fit_jointly if config.solver == "joint" else None,
        workspace.weights,
        on_start,
        on_step,
        state or Descent(current=dict(workspace.start)),
        on_state,
        on_pass,
    )


def check_seed(seed: object, needed: bool) -> None:
    """Refuse a seed of a draw that is missing, no seed, or of no use.

    Raises
    ------
    ConfigError
        If it is so.
    """
    if needed and seed is None:
        raise ConfigError("kind 'sample' needs a seed: predict(X, kind='sample', seed=1)")
    if not needed and seed is not None:
        raise ConfigError("a seed is for kind 'sample' alone; remove it")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int | np.integer)):
        raise ConfigError(f"seed {seed!r} is no whole number")


def _with_response(X: Source, y: NDArray[Any], config: ModelConfig) -> pa.Table:
    """Put labels beside rows, in the response's column."""
    rows = open_rows(X, "X")
    table = rows.read(rows.schema.names)
    if y.shape != (table.num_rows,):
        raise DataError(f"y has shape {y.shape}, X has {table.num_rows:,} rows")
    name = config.columns.column("response")
    if name in table.schema.names:
        table = table.drop_columns([name])
    return cast(pa.Table, table.append_column(name, pa.array(y)))
