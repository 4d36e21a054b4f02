"""Writes objects, copies them within their store, and removes them: s3://, gs:// and file://."""

from pathlib import Path

from deit_fast.runtime.object_store.uris import MissingError, ask, connect


def write_object(uri: str, content: Path | bytes) -> None:
    """Stores a file, or bytes, whole or not at all (except for file://). Raises RunError."""

    def write() -> None:
        system = connect(uri, writes=True)
        if isinstance(content, bytes):
            system.pipe_file(uri, content)
            return
        system.put_file(str(content), uri)
        if (stored := system.info(uri)["size"]) != content.stat().st_size:
            raise OSError(f"{stored} bytes arrived of {content.stat().st_size}")

    ask(uri, write)


def copy_object(source: str, destination: str) -> None:
    """Copies an object within its store. Raises RunError."""
    ask(destination, lambda: connect(source, writes=True).cp_file(source, destination))


def remove_object(uri: str) -> None:
    """Removes an object, if it exists. Raises RunError where the store refuses."""
    try:
        ask(uri, lambda: connect(uri, writes=True).rm_file(uri))
    except MissingError:
        return
