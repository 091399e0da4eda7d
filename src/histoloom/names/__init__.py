"""The expert's names of clusters: appended to ``RUN/names.jsonl``, never rewritten (docs/how-to/name-clusters.md).

``journal`` keeps the events, ``label_state`` says which labels count and whose, ``edits`` is what a rater can do,
``table`` the exchange with spreadsheets and the samples' table, ``text`` what may stand in a name.
"""

from histoloom.names.edits import add_label, add_name, choose_reference, merge, redo, undo
from histoloom.names.journal import (
    Event,
    Kind,
    append,
    clustering_of,
    journal_file,
    locked,
    names_journal,
    read_events,
)
from histoloom.names.label_state import (
    Label,
    LabelState,
    artefacts_of,
    clusters_of_tissue,
    current_labels,
    current_names,
    display_labels,
    flags_of,
    raters_of,
    read_label_state,
    reference_of,
    tissues_of,
    without_artefacts,
)
from histoloom.names.table import refresh_sample_names
from histoloom.names.text import FLAGS, MAX_LENGTH, default_name, folder_name, normalised, valid_colour

__all__ = [
    "FLAGS",
    "MAX_LENGTH",
    "Event",
    "Kind",
    "Label",
    "LabelState",
    "add_label",
    "add_name",
    "append",
    "artefacts_of",
    "choose_reference",
    "clustering_of",
    "clusters_of_tissue",
    "current_labels",
    "current_names",
    "default_name",
    "display_labels",
    "flags_of",
    "folder_name",
    "journal_file",
    "locked",
    "merge",
    "names_journal",
    "normalised",
    "raters_of",
    "read_events",
    "read_label_state",
    "redo",
    "reference_of",
    "refresh_sample_names",
    "tissues_of",
    "undo",
    "valid_colour",
    "without_artefacts",
]
