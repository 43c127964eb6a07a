"""Pages of latents, and the index that leads to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sae_lens_crosscoder.dashboards.chunks import ChunkFolder, activation_cache, chunked
from sae_lens_crosscoder.dashboards.facts import described, headline_columns, latent_facts
from sae_lens_crosscoder.dashboards.index_page import IndexEntry, index_page
from sae_lens_crosscoder.dashboards.lenses import lens_fingerprint, source_lenses
from sae_lens_crosscoder.dashboards.page import page
from sae_lens_crosscoder.dashboards.reading import read_latents
from sae_lens_crosscoder.dashboards.subject import DashboardConfig, DashboardSubject
from sae_lens_crosscoder.diffing.diff_report import Column
from sae_lens_crosscoder.files import file_written_aside, write_file

MANIFEST = "dashboards.json"


def write_dashboards(
    subject: DashboardSubject,
    latents: Sequence[int],
    out: str | Path,
    config: DashboardConfig | None = None,
    facts: Sequence[Column] | None = None,
) -> Path:
    """Write sae-dashboard's pages of the latents, with a column of logits for every source, and an index of them.

    Every page holds `n_latents_per_page` latents and opens with no network; `index.html` lists and finds them all, and
    links to each (`latents-0.html#17`). A call that was stopped goes on where it was. Pages of another crosscoder,
    text, configuration or choice of latents are made anew. The crosscoder stays as it is, to the last bit.

    Args:
        subject: The models, the crosscoder and the text.
        latents: Indices of the latents, in the order of the pages.
        out: Folder to write to.
        config: How much is shown.
        facts: What headings and index say of latents (`latent_facts`); what the decoder says if left out.

    Returns:
        `index.html`.

    Raises:
        ConfigError: Latents that are not there, or what `read_latents` refuses.
        SaveError: The folder cannot be written to.
        MissingDependencyError: sae-dashboard is not installed.
    """
    config = config or DashboardConfig()
    out = Path(out)
    columns = headline_columns(latent_facts(subject) if facts is None else facts)
    chunks = chunked(subject, latents, config)
    known = {latent: described(columns, latent) for chunk in chunks for latent in chunk}
    lenses = source_lenses(subject, config.fold_final_norm)
    made_of = [subject.fingerprint(config), lens_fingerprint(lenses), known]
    pages = [f"latents-{i}.html" for i in range(len(chunks))]
    folder = ChunkFolder(out / MANIFEST, made_of, chunks, [[name] for name in pages])
    if folder.pending:
        # An index of other pages leads nowhere.
        (out / "index.html").unlink(missing_ok=True)
    with activation_cache(subject, out, config, len(folder.pending)) as cache:
        for i in folder.progress("Dashboards"):
            readings = read_latents(subject, lenses, folder.chunks[i], config, cache)
            with file_written_aside(out / pages[i]) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(page(readings, lenses, known, config))
            folder.finish(i, {str(latent): share for latent, share in readings.frequency.items()})
    entries = [
        IndexEntry(int(latent), file, share)
        for file, record in zip(pages, folder.records, strict=True)
        for latent, share in record.items()
    ]
    title = f"Dashboards of {len(entries):,} latents: {', '.join(subject.joint.sources.labels)}"
    return write_file(out / "index.html", index_page(title, entries, columns, _notes(subject, config)).encode())


def _notes(subject: DashboardSubject, config: DashboardConfig) -> str:
    """What a reader of the pages has to know."""
    sources = subject.joint.sources
    labels = sources.labels
    text = [
        f"Read on {int(subject.is_counted.sum()):,} tokens. Activations are in the crosscoder's own units.",
        f"Contexts are shown in the tokens of {labels[0]}; each model's logits are those of its own vocabulary.",
        "Logits: the latent's row through the model's unembedding, without the blocks in between and "
        f"{'with' if config.fold_final_norm else 'without'} the weights of its final norm.",
    ]
    if sources.combine == "difference":
        text.append(
            f"This SAE reads the difference {labels[1]} minus {labels[0]}: it has one row a latent, which is shown "
            "through both models' unembeddings."
        )
    if subject.joint.aligner is not None:
        text.append(
            "The models read tokens of their own: a latent has an activation only where tokens of all models end at "
            "the same character."
        )
    return " ".join(text)
