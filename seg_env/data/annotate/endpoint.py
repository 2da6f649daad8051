"""Descriptions from a vision-language model behind an OpenAI-compatible address."""

from __future__ import annotations

import base64
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.parse import urlsplit

from PIL import Image

from seg_env.data.annotate.arguments import check_between, check_whole
from seg_env.data.annotate.describing import PROMPT, highlight
from seg_env.data.annotate.nouns import Found, Picture

MOST_BYTES = 1 << 20
"""Longest answer of a server that is read."""
MOST_REFUSED = 20
"""So many requests refused one after another mean that something is wrong with all of them."""
LONGEST_WAIT = 60.0
"""Seconds between two tries at most, whatever the server asks for."""
LONGEST_TIMEOUT = 86_400.0
"""Seconds that an answer may take at most."""
_TRY_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
_THIS_REQUEST = (400, 413, 415, 422)
_LOCAL = ("localhost", "127.0.0.1", "::1")


class EndpointDescriber:
    """Asks ``<url>/chat/completions`` about each object: vLLM, llama.cpp, a commercial service.

    The object is shown by a red outline. Answers are data: their length is bounded here, and the
    annotator cleans and checks their content. A request that the server refuses (for its content,
    for example) leaves an object without description; a server that is down is asked again and
    again with growing pauses, and then stops the run, which can be resumed.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key_variable: str = "OPENAI_API_KEY",
        prompt: str = PROMPT,
        parallel: int = 4,
        tries: int = 6,
        timeout: float = 120.0,
        pause: float = 1.0,
        longest_side: int = 768,
        max_tokens: int = 60,
    ) -> None:
        """Describe the server; nothing is sent yet.

        Args:
            url: Up to the version, for example ``"http://localhost:8000/v1"``.
            model: What the server calls the model.
            api_key_variable: Environment variable with the key; unset or empty sends none. Keys are
                never written anywhere.
            prompt: What is asked.
            parallel: Requests at a time, 1 or more.
            tries: How often a request is made before a failing server stops the run, 1 or more.
            timeout: Seconds that an answer may take, above 0.
            pause: Seconds before the second try, from 0; doubled every time.
            longest_side: Pictures are reduced to it, in pixels, 1 or more.
            max_tokens: Longest description, 1 or more.

        Raises:
            ValueError: The address is not one of http or https, or would send a key unencrypted to
                another machine; or a number is out of range.
        """
        check_whole(1, parallel=parallel, tries=tries)
        check_whole(1, longest_side=longest_side, max_tokens=max_tokens)
        check_between(0.0, LONGEST_TIMEOUT, timeout=timeout, pause=pause)
        if not timeout:
            raise ValueError(f"timeout={timeout}; use a number of seconds above 0")
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url={url!r} must start with http:// or https:// and name a server")
        self._key = os.environ.get(api_key_variable, "")
        if self._key and parts.scheme == "http" and parts.hostname not in _LOCAL:
            raise ValueError(
                f"url={url!r} would send the key in {api_key_variable} unencrypted: use https, or "
                "unset the variable"
            )
        self._address = f"{url.rstrip('/')}/chat/completions"
        self._model, self._prompt = model, prompt
        self._parallel, self._tries, self._timeout, self._pause = parallel, tries, timeout, pause
        self._longest_side, self._max_tokens = longest_side, max_tokens
        self._refused = 0
        # A redirected request would carry the key to wherever the server says.
        self._opener = urllib.request.build_opener(_NoRedirects)

    def describe(
        self, pictures: Sequence[Picture], objects: Sequence[Sequence[Found]]
    ) -> list[list[str]]:
        """See `seg_env.data.annotate.stages.Describer`.

        Raises:
            ConnectionError: The server does not answer, or refuses everything; says what it said.
        """
        pairs = [
            (picture, found)
            for picture, some in zip(pictures, objects, strict=True)
            for found in some
        ]
        with ThreadPoolExecutor(self._parallel) as pool:
            texts = iter(list(pool.map(lambda pair: self._ask(*pair), pairs)))
        return [[next(texts) for _ in some] for some in objects]

    def _ask(self, picture: Picture, found: Found) -> str:
        request = urllib.request.Request(self._address, self._question(picture, found))
        request.add_header("Content-Type", "application/json")
        if self._key:
            request.add_header("Authorization", f"Bearer {self._key}")
        for attempt in range(self._tries):
            wait = self._pause * 2.0**attempt
            try:
                return self._accept(self._read(request))
            except urllib.error.HTTPError as error:
                problem = f"{error.code} {error.reason}: {_said(error)}"
                if error.code in _THIS_REQUEST:
                    return self._refuse(problem)
                if error.code not in _TRY_AGAIN:
                    raise ConnectionError(f"{self._address} answered {problem}") from error
                wait = max(wait, _seconds(error.headers.get("Retry-After")))
            except (OSError, HTTPException) as error:  # no connection, timeout, half an answer
                problem = f"{type(error).__name__}: {error}"
            if attempt + 1 < self._tries:
                time.sleep(min(wait, LONGEST_WAIT))
        raise ConnectionError(
            f"{self._address} failed {self._tries} times, last with {problem}; shards that are "
            "done stay, run again to go on"
        )

    def _read(self, request: urllib.request.Request) -> bytes:
        """The answer; a server that dribbles is given up like one that is silent."""
        end = time.monotonic() + self._timeout
        parts, left = [], MOST_BYTES + 1
        with self._opener.open(request, timeout=self._timeout) as response:
            while left > 0 and (part := response.read1(min(left, 1 << 16))):
                parts.append(part)
                left -= len(part)
                if time.monotonic() > end:
                    raise TimeoutError(f"an answer took more than {self._timeout} seconds")
        return b"".join(parts)

    def _accept(self, answer: bytes) -> str:
        """The text in an answer, ``""`` where it has none."""
        try:
            text = json.loads(answer)["choices"][0]["message"]["content"]
        except (ValueError, RecursionError, KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            return self._refuse(f"no text in {answer[:500]!r}")
        self._refused = 0
        return text

    def _refuse(self, problem: str) -> str:
        self._refused += 1
        if self._refused >= MOST_REFUSED:
            raise ConnectionError(
                f"{self._address} refused {self._refused} requests in a row, last with {problem}"
            )
        return ""

    def _question(self, picture: Picture, found: Found) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(highlight(picture, found, self._longest_side)).save(buffer, "JPEG")
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        content: list[dict[str, Any]] = [
            {"type": "text", "text": self._prompt},
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}},
        ]
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self._max_tokens,
            "temperature": 0,
        }
        return json.dumps(body).encode()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> None:
        """Follow nothing: the redirection itself becomes the error."""
        return None


def _said(error: urllib.error.HTTPError) -> str:
    """The start of what comes with an error; ``""`` where it breaks off, as the error counts."""
    try:
        return error.read(500).decode("utf-8", "replace")
    except (OSError, HTTPException):
        return ""


def _seconds(text: str | None) -> float:
    return float(text) if text and text.isascii() and text.isdigit() and len(text) < 6 else 0.0
