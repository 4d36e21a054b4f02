"""Files and folders that other programs put into a data set: they are neither classes nor images."""

HIDDEN_FOLDERS = {
    "__MACOSX", "__pycache__", "lost+found", "System Volume Information", "$RECYCLE.BIN",
    "@eaDir", "@tmp", "@Recycle", "@Recently-Snapshot", "@__thumb", "#recycle", "#snapshot",
}  # fmt: skip


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden (.git, .ipynb_checkpoints, macOS's ._a.jpg) or an archiver's or a NAS's."""
    return name.startswith(".") or name in HIDDEN_FOLDERS
