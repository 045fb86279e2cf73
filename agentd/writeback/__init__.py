"""Learned values, written back into the author's source: found in the syntax tree, changed in the text, checked after every change.

    written = write_back(source.files, source.entrypoint, parameters, revision.values)
    patch = unified_diff(source.files, written.files)

Pure: texts and records in, texts out. Nothing of the program is imported or run.
"""

from agentd.writeback.documents import FORMAT, VERSION, ExportDocument, ExportedParameter, read_document
from agentd.writeback.edits import Written, write_back
from agentd.writeback.patches import unified_diff

__all__ = ["FORMAT", "VERSION", "ExportDocument", "ExportedParameter", "Written", "read_document", "unified_diff", "write_back"]
