"""The expert's names of clusters: appended to ``RUN/names.jsonl``, never rewritten (docs/how-to/name-clusters.md).

``journal`` keeps the events, ``book`` says what stands and whose names count, ``edits`` is what a rater can do,
``tissues`` what everything else asks, ``table`` the exchange with spreadsheets, ``text`` what may stand in a name.
"""

from histoloom.names.edits import add_label, add_name, choose_reference, merge, redo, undo
from histoloom.names.journal import Event, Journal, Kind, append, clustering_of, journal_file, locked, read_events
from histoloom.names.label_state import Label, LabelState, raters_of, reference_of
from histoloom.names.text import FLAGS, MAX_LENGTH, default_name, plain, valid_colour
from histoloom.names.tissues import (
    Naming,
    clusters_of,
    current_labels,
    current_names,
    read_book,
    read_names,
    refresh_sample_names,
    shown_labels,
)

__all__ = [
    "FLAGS",
    "MAX_LENGTH",
    "Event",
    "Journal",
    "Kind",
    "Label",
    "LabelState",
    "Naming",
    "add_label",
    "add_name",
    "append",
    "choose_reference",
    "clustering_of",
    "clusters_of",
    "current_labels",
    "current_names",
    "default_name",
    "journal_file",
    "locked",
    "merge",
    "plain",
    "raters_of",
    "read_book",
    "read_events",
    "read_names",
    "redo",
    "reference_of",
    "refresh_sample_names",
    "shown_labels",
    "undo",
    "valid_colour",
]
