"""Files and folders that programs leave among a data set's: nobody means them as classes or as images."""

HIDDEN_FOLDERS = {
    "__MACOSX", "__pycache__", "lost+found", "System Volume Information", "$RECYCLE.BIN",
    "@eaDir", "@tmp", "@Recycle", "@Recently-Snapshot", "@__thumb", "#recycle", "#snapshot",
}  # fmt: skip


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden (.git, .ipynb_checkpoints, ._a.jpg of macOS) or an archive's or NAS's own."""
    return name.startswith(".") or name in HIDDEN_FOLDERS
