"""Single images, given by path or as pixels, as a source without classes; and batches of those that are readable."""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from glob import glob
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from deit_fast.data.loader.batches import EvalLoader
from deit_fast.data.loader.broken import describe_refusal
from deit_fast.data.loader.pipeline import decodes
from deit_fast.data.sources.base import Source, read_bytes, read_image
from deit_fast.data.sources.folder_walk import list_images
from deit_fast.data.sources.pixels import UnknownPixels, array_as_rgb, as_ppm, as_rgb, check_array
from deit_fast.data.sources.place import has_wildcards, list_remote_images, match_files
from deit_fast.recipe.schema import Recipe
from deit_fast.runtime.errors import DataError, RunError, StorageError, one_line
from deit_fast.runtime.object_store import is_folder, is_remote, is_web, read_object
from deit_fast.runtime.patience import patiently
from deit_fast.runtime.progress import Progress

GivenImage = str | os.PathLike[str] | Image.Image | NDArray[Any]

_MAX_BYTES = 2**30  # largest object that is read, bytes
_WEB_SECONDS = 5.0  # for retries: with many web servers, one that is gone fails its own images only


class ImageList(Source):
    """N images: paths, URIs of stores, PIL images, or arrays that `array_as_rgb` takes.

    http:// and https:// URIs are fetched only with `allow_urls`. Raises RunError for a URI that is not allowed, for an
    array of another kind, and for an object that is no image.
    """

    def __init__(self, images: Sequence[GivenImage], allow_urls: bool = False) -> None:
        super().__init__("images", [], np.zeros(len(images), np.int64))
        self._images = list(images)
        self._decoding = threading.Lock()
        self._unread: dict[str, str] = {}  # unreadable URIs, with the reasons
        for index, image in enumerate(self._images):
            if isinstance(image, str) and is_web(image) and not allow_urls:
                raise RunError(f"{image}: expected a file; URLs are fetched only when asked for (allow_urls=True)")
            if isinstance(image, np.ndarray):
                try:
                    check_array(image)
                except UnknownPixels as error:
                    raise RunError(f"{self.name(index)}: {error}") from None
            elif not isinstance(image, str | os.PathLike | Image.Image):
                raise RunError(
                    f"{self.name(index)}: expected a path, a PIL image or an array, got {type(image).__name__}"
                )

    def read(self, index: int) -> NDArray[np.uint8]:
        """Image `index` as an encoded file, uint8 [bytes]: the file's own bytes; for pixels a PPM, which is lossless.

        Raises DataError where a file or an object is unreadable, or where a PIL image cannot be decoded to RGB;
        StorageError where a store goes on failing.
        """
        image = self._images[index]
        if isinstance(image, str | os.PathLike):
            path = os.fspath(image)
            return self._read_object(path) if is_remote(path) else read_bytes(path)
        # Pixels are encoded without loss, so that they can be handled like files.
        if isinstance(image, np.ndarray):
            return as_ppm(array_as_rgb(image))
        try:
            with self._decoding:  # the same image may be listed twice, and PIL decodes it at its first use
                return as_ppm(np.asarray(as_rgb(image)))
        except UnknownPixels as error:
            raise DataError(f"{self.name(index)}: expected an image, found {error}") from None
        except Exception as error:  # PIL's decoders raise many kinds
            reason = one_line(error) or type(error).__name__
            raise DataError(f"{self.name(index)}: expected an image that can be decoded ({reason})") from None

    def name(self, index: int) -> str:
        image = self._images[index]
        return os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {index}"

    def only(self, indices: Sequence[int]) -> "ImageList":
        """A list of the images at `indices`."""
        chosen = ImageList([self._images[index] for index in indices], allow_urls=True)  # they were checked before
        chosen._unread = self._unread
        return chosen

    def _read_object(self, uri: str) -> NDArray[np.uint8]:
        if uri in self._unread:  # it was retried for long enough before
            raise DataError(self._unread[uri])
        try:
            data = patiently(lambda: read_object(uri, _MAX_BYTES), uri, _WEB_SECONDS if is_web(uri) else None)
        except RunError as error:
            if isinstance(error, StorageError) and not is_web(uri):
                raise
            self._unread[uri] = str(error)
            raise DataError(self._unread[uri]) from None
        return np.frombuffer(data, np.uint8)


def find_images(words: Iterable[str]) -> list[str]:
    """The paths and URIs that words stand for: files, the images below folders, the matches of globs.

    Raises RunError for a word that matches nothing.
    """
    found: list[str] = []
    for word in words:
        if is_remote(word):
            matches = _find_objects(word)
        elif os.path.isdir(word):
            matches = list_images(word)
        elif os.path.exists(word):
            matches = [word]
        else:
            matches = sorted(glob(word, recursive=True))
        if not matches:
            raise RunError(f"{word}: expected an image, a folder of images or a glob of them, found none")
        found += matches
    return found


def readable_batches(
    images: ImageList, recipe: Recipe, batch: int, device: torch.device, threads: int
) -> Iterator[tuple[list[int], torch.Tensor | str]]:
    """Indices and pixels, uint8 [b, 3, S, S] as in evaluation, of all images that can be decoded, in their order.

    batch: the largest number of images. An image that cannot be decoded comes alone, with the reason instead of pixels.
    """
    waiting = list(range(len(images)))
    with Progress(len(images), "images") as bar:
        while waiting:
            loader = EvalLoader(
                images.only(waiting), recipe.data, recipe.model.image_size, min(batch, len(waiting)), device, threads,
                backend=recipe.run.image_backend,
            )  # fmt: skip
            done = 0
            try:
                for loaded in loader:
                    yield waiting[done : done + loaded.valid], loaded.images[: loaded.valid]
                    done += loaded.valid
                    bar.update(loaded.valid)
                return
            except DataError:
                failed = waiting[done : done + batch]
                reasons = {index: reason for index in failed if (reason := _complaint(images, index))}
                if not reasons:
                    raise
            finally:
                loader.close()
            yield from (([index], reason) for index, reason in reasons.items())
            bar.update(len(reasons))
            waiting = [index for index in waiting[done:] if index not in reasons]


def _complaint(images: ImageList, index: int) -> str:
    """Why an image cannot be used, in one line; "" if it can."""
    try:
        encoded, _ = images.prepare(index, read_image(images, index))
    except DataError as error:
        return str(error)
    return "" if decodes([encoded], torch.device("cpu")) else describe_refusal(images, index, encoded)


def _find_objects(uri: str) -> list[str]:
    """The object at a URI, the images below the folder there, or those that a glob of names matches."""
    if is_web(uri):  # a web server cannot list
        return [uri]
    if has_wildcards(uri):
        return list(match_files(uri))
    return list_remote_images(uri) if is_folder(uri) else [uri]
