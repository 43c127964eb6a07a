"""Every name of sae-dashboard that this package uses; without sae-dashboard, importing this says how to install it.

Most installations do not have it, so its names are untyped here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sae_lens_crosscoder.errors import MissingDependencyError

try:
    _components: Any = import_module("sae_dashboard.components")
    _configs: Any = import_module("sae_dashboard.components_config")
    _parsing: Any = import_module("sae_dashboard.data_parsing_fns")
    _feature: Any = import_module("sae_dashboard.feature_data")
    _html: Any = import_module("sae_dashboard.html_fns")
    _layout: Any = import_module("sae_dashboard.layout")
    _converter: Any = import_module("sae_dashboard.neuronpedia.neuronpedia_converter")
    _converter_config: Any = import_module("sae_dashboard.neuronpedia.neuronpedia_runner_config")
    _data: Any = import_module("sae_dashboard.sae_vis_data")
    _runner: Any = import_module("sae_dashboard.sae_vis_runner")
except ImportError as error:
    raise MissingDependencyError(
        'Dashboards need sae-dashboard, which is not installed: pip install "sae-lens-crosscoder[dashboard]" (it needs '
        "TransformerLens 2 and an older transformers, so give it an environment of its own)."
    ) from error

FeatureData: Any = _feature.FeatureData
LogitsHistogramData: Any = _components.LogitsHistogramData
SequenceData: Any = _components.SequenceData
SequenceGroupData: Any = _components.SequenceGroupData
SequenceMultiGroupData: Any = _components.SequenceMultiGroupData

ActsHistogramConfig: Any = _configs.ActsHistogramConfig
Column: Any = _configs.Column
FeatureTablesConfig: Any = _configs.FeatureTablesConfig
LogitsHistogramConfig: Any = _configs.LogitsHistogramConfig
LogitsTableConfig: Any = _configs.LogitsTableConfig
SequencesConfig: Any = _configs.SequencesConfig
SaeVisLayoutConfig: Any = _layout.SaeVisLayoutConfig

SaeVisConfig: Any = _data.SaeVisConfig
SaeVisData: Any = _data.SaeVisData
SaeVisRunner: Any = _runner.SaeVisRunner
get_features_table_data: Any = _parsing.get_features_table_data
get_logits_table_data: Any = _parsing.get_logits_table_data

HTML: Any = _html.HTML
NeuronpediaConverter: Any = _converter.NeuronpediaConverter
NeuronpediaRunnerConfig: Any = _converter_config.NeuronpediaRunnerConfig
