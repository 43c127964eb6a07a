"""The tables of Neuronpedia that an export fills, and the body of its upload API, as one list of columns each.

A line of a table reads `name Kind`, then `[]` for an array, `?` where null is allowed, `!` where there is no default,
and a range: of a number its values, of an array its length. A kind that is another table's name nests it.

The columns are those of Neuronpedia's database (apps/webapp/prisma/schema.prisma); the payload is what POST
/api/feature/upload-batch checks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

_LINE = re.compile(
    r"(?P<name>\w+) +(?P<kind>\w+)(?P<array>\[\])?(?P<nullable>\?)?(?P<required>!)?"
    r"(?: +(?P<low>[\d.]*?)\.\.(?P<high>[\d.]*))?"
)


@dataclass(frozen=True)
class Column:
    """One column, or one key of a nested object."""

    name: str
    kind: str
    is_array: bool
    is_nullable: bool
    is_required: bool
    low: float
    high: float


@dataclass(frozen=True)
class Table:
    """A kind of row: its columns, which of them run side by side, and what a row is known by."""

    name: str
    text: str
    parallel: tuple[tuple[str, ...], ...] = ()
    """Arrays that must be equally long."""

    parallel_or_empty: tuple[tuple[str, str], ...] = ()
    """Arrays, and the one that they are as long as unless they are empty."""

    key: tuple[str, ...] = ()
    """Columns that no two rows may agree on."""

    nested: Mapping[str, Table] = field(default_factory=dict)  # pyright: ignore[reportUnknownVariableType]
    """Tables that columns of this one are made of."""

    @cached_property
    def columns(self) -> dict[str, Column]:
        """The columns by name."""
        return {column.name: column for column in map(_column, self.text.strip().splitlines())}

    @cached_property
    def required(self) -> list[str]:
        """Names of the columns that have no default."""
        return [column.name for column in self.columns.values() if column.is_required]


def _column(line: str) -> Column:
    match = _LINE.fullmatch(line.strip())
    if match is None:
        raise ValueError(f"{line!r} describes no column.")
    low, high = match["low"], match["high"]
    return Column(
        name=match["name"],
        kind=match["kind"],
        is_array=match["array"] is not None,
        is_nullable=match["nullable"] is not None,
        is_required=match["required"] is not None,
        low=float(low) if low else -math.inf,
        high=float(high) if high else math.inf,
    )


RELEASE = Table(
    "SourceRelease",
    """
    name                 Name!
    description          Text!
    descriptionShort     Text?
    creatorName          Text!
    creatorNameShort     Text?
    creatorEmail         Text?
    creatorId            Name!
    urls                 Text[]
    visibility           Visibility
    isNewUi              Flag
    featured             Flag
    defaultSourceSetName Text?
    defaultSourceId      Text?
    defaultUmapSourceIds Text[]
    createdAt            Time
    """,
    key=("name",),
)

MODEL = Table(
    "Model",
    """
    id                        ModelId!
    displayNameShort          Text
    displayName               Text
    creatorId                 Name!
    layers                    Integer! 0..
    neuronsPerLayer           Integer! 0..
    owner                     Name!
    tlensId                   Text?
    openRouterId              Text?
    hfRepoId                  Text?
    dimension                 Integer? 1..
    thinking                  Flag
    instruct                  Flag
    inferenceEnabled          Flag
    visibility                Visibility
    defaultSourceSetName      Text?
    defaultSourceId           Text?
    defaultGraphSourceSetName Text?
    website                   Text?
    createdAt                 Time
    updatedAt                 Time
    """,
    key=("id",),
)

SOURCE_SET = Table(
    "SourceSet",
    """
    modelId                 ModelId!
    name                    SetName!
    description             Text!
    creatorName             Text!
    creatorId               Name!
    creatorEmail            Text?
    releaseName             Name?
    type                    Text
    urls                    Text[]
    visibility              Visibility
    hasDashboards           Flag
    allowInferenceSearch    Flag
    hasGraphs               Flag
    graphEnabled            Flag
    similarityMatrixEnabled Flag
    defaultOfModelId        Text?
    defaultGraphModelId     Text?
    defaultRange            Integer 0..
    defaultShowBreaks       Flag
    showDfa                 Flag
    showCorrelated          Flag
    showHeadAttribution     Flag
    showUmap                Flag
    createdAt               Time
    """,
    key=("modelId", "name"),
)

# The importer reads inferenceHosts itself; the database has no such column.
SOURCE = Table(
    "Source",
    """
    id                   SourceId!
    modelId              ModelId!
    setName              SetName!
    creatorId            Name!
    hasDashboards        Flag
    inferenceEnabled     Flag
    inferenceHosts       Text[]
    saelensConfig        Json?
    saelensRelease       Text?
    saelensSaeId         Text?
    hfRepoId             Text?
    hfFolderId           Text?
    visibility           Visibility
    defaultOfModelId     Text?
    hasUmap              Flag
    hasUmapLogSparsity   Flag
    hasUmapClusters      Flag
    num_prompts          Integer? 0..
    num_tokens_in_prompt Integer? 0..
    dataset              Text?
    notes                Text?
    cosSimMatchModelId   Text?
    cosSimMatchSourceId  Text?
    createdAt            Time
    """,
    key=("modelId", "id"),
)

NEURON = Table(
    "Neuron",
    """
    modelId                      ModelId!
    layer                        SourceId!
    index                        Index!
    sourceSetName                SetName?
    creatorId                    Name?
    createdAt                    Time
    maxActApprox                 Number?
    hasVector                    Flag
    vector                       Number[]
    vectorLabel                  Text?
    vectorDefaultSteerStrength   Number?
    hookName                     Name?
    topkCosSimIndices            Integer[]
    topkCosSimValues             Number[]
    neuron_alignment_indices     Integer[]
    neuron_alignment_values      Number[]
    neuron_alignment_l1          Number[]
    correlated_neurons_indices   Integer[]
    correlated_neurons_pearson   Number[]
    correlated_neurons_l1        Number[]
    correlated_features_indices  Integer[]
    correlated_features_pearson  Number[]
    correlated_features_l1       Number[]
    neg_str                      Token[]
    neg_values                   Number[]
    pos_str                      Token[]
    pos_values                   Number[]
    frac_nonzero                 Number 0..1
    freq_hist_data_bar_heights   Number[]
    freq_hist_data_bar_values    Number[]
    logits_hist_data_bar_heights Number[]
    logits_hist_data_bar_values  Number[]
    decoder_weights_dist         Number[]
    umap_cluster                 Integer?
    umap_log_feature_sparsity    Number?
    umap_x                       Number?
    umap_y                       Number?
    """,
    parallel=(
        ("topkCosSimIndices", "topkCosSimValues"),
        ("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1"),
        ("correlated_neurons_indices", "correlated_neurons_pearson", "correlated_neurons_l1"),
        ("correlated_features_indices", "correlated_features_pearson", "correlated_features_l1"),
        ("neg_str", "neg_values"),
        ("pos_str", "pos_values"),
        ("freq_hist_data_bar_heights", "freq_hist_data_bar_values"),
        ("logits_hist_data_bar_heights", "logits_hist_data_bar_values"),
    ),
    key=("modelId", "layer", "index"),
)

ACTIVATION = Table(
    "Activation",
    """
    id                   Name!
    tokens               Token[]! 1..
    dataIndex            Text?
    index                Index!
    layer                SourceId!
    modelId              ModelId!
    dataSource           Text?
    maxValue             Number!
    maxValueTokenIndex   Integer! 0..
    minValue             Number!
    values               Number[]! 1..
    dfaValues            Number[]
    dfaTargetIndex       Integer?
    dfaMaxValue          Number?
    zQIndices            Integer[]
    zKIndices            Integer[]
    zValues              Number[]
    creatorId            Name!
    createdAt            Time
    lossValues           Number[]
    logitContributions   Text?
    binMin               Number?
    binMax               Number?
    binContains          Number?
    qualifyingTokenIndex Integer? 0..
    """,
    parallel=(("tokens", "values"), ("zQIndices", "zKIndices", "zValues")),
    parallel_or_empty=(("dfaValues", "values"), ("lossValues", "values")),
    key=("id",),
)

LOGIT = Table("Logit", "token Token!\nvalue Number!")

EXPLANATION = Table("Explanation", "text Token! 1..512\nmethodName Text?\nmodelName Text?")

WINDOW = Table(
    "Window",
    """
    tokens           Token[]! 1..1024
    values           Number[]! 1..1024
    quantileMax      Number? ..99999999
    quantileMin      Number? ..99999999
    quantileFraction Number? 0..1
    """,
    parallel=(("tokens", "values"),),
)

FEATURE = Table(
    "Feature",
    """
    index        Integer! 0..10000000
    density      Number 0..1
    topLogits    Logit[]? ..20
    bottomLogits Logit[]? ..20
    explanations Explanation[]
    activations  Window[]! 1..
    """,
    key=("index",),
    nested={"Logit": LOGIT, "Explanation": EXPLANATION, "Window": WINDOW},
)

PAYLOAD = Table(
    "Payload", "modelId ModelId!\nsource UploadId!\nfeatures Feature[]! 1..128", nested={"Feature": FEATURE}
)
