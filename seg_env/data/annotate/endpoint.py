"""Descriptions from a vision-language model behind an OpenAI-compatible address."""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from seg_env.data.annotate.describing import PROMPT, highlight
from seg_env.data.annotate.stages import Found, check_between, check_whole

try:
    import httpx2
    import openai
except ImportError as error:
    raise ImportError(
        f"servers are asked through the OpenAI client ({error}): "
        "pip install 'simpleseg-rl[describe]'"
    ) from error

MOST_BYTES = 1 << 20
"""Most bytes that are read of a server's answer."""
MOST_REFUSED = 20
"""When so many requests in a row are refused, something is wrong with all of them."""


@dataclass(eq=False)
class EndpointDescriber:
    """Asks ``<url>/chat/completions`` about each object: vLLM, llama.cpp, a commercial service.

    A red outline shows the object. If the server refuses a request, perhaps for its content, the
    object gets no description. A server that is down is asked again with growing pauses; then the
    run stops, and can be resumed.

    Raises:
        ValueError: The address is not one of http or https, or would send a key unencrypted to
            another machine; or a number is out of range.
    """

    url: str
    """Up to the version, for example ``"http://localhost:8000/v1"``."""
    model: str
    """The server's name for the model."""
    _: KW_ONLY
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key, which is written nowhere; unset or empty sends none."""
    prompt: str = PROMPT
    """What is asked about an image from `highlight`."""
    parallel: int = 4
    """Requests at a time."""
    tries: int = 6
    """How often a request is made before a failing server stops the run."""
    timeout: float = 120.0
    """Seconds that an answer may take."""
    longest_side: int = 768
    """Larger images are reduced to it, in pixels."""
    max_tokens: int = 60
    """Longest description."""

    def __post_init__(self) -> None:
        """Set up the client; nothing is sent yet."""
        check_whole(1, parallel=self.parallel, tries=self.tries)
        check_whole(1, longest_side=self.longest_side, max_tokens=self.max_tokens)
        check_between(0.001, 86_400.0, timeout=self.timeout)
        url, variable = self.url, self.api_key_variable
        parts, key = urlsplit(url), os.environ.get(variable, "")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url={url!r} must start with http:// or https:// and name a server")
        is_local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        if key and parts.scheme == "http" and not is_local:
            raise ValueError(
                f"url={url!r} would send the key in {variable} unencrypted: use https, or unset "
                "the variable"
            )
        self._refused = 0
        client = openai.OpenAI(
            base_url=self.url,
            api_key=key or "none",
            max_retries=self.tries - 1,
            timeout=self.timeout,
            http_client=openai.DefaultHttpxClient(
                follow_redirects=False,  # they would send the key wherever the server says
                timeout=self.timeout,
                event_hooks={"response": [partial(_read_bounded, seconds=self.timeout)]},
            ),
        )
        self._create = partial(
            client.chat.completions.with_raw_response.create,
            model=self.model,
            max_tokens=self.max_tokens,
            temperature=0,
            extra_headers={
                "Accept-Encoding": "identity",
                **({} if key else {"Authorization": openai.Omit()}),
            },
        )

    def describe(self, objects: Sequence[Found]) -> list[str]:
        """See `seg_env.data.annotate.stages.Describer`.

        Raises:
            ConnectionError: The server does not answer, or refuses everything.
        """
        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(self._ask, objects))

    def _ask(self, found: Found) -> str:
        try:
            response = self._create(messages=[self._question(found)])
        except openai.APIError as error:
            problem = f"{error} {error.__cause__ or ''}"
            if isinstance(error, openai.APIStatusError):
                problem = f"{error.status_code}: {error.response.text[:500]}"
                if error.status_code in (400, 413, 415, 422):  # about this request only
                    return self._refuse(problem)
            tries = 1 + int(error.request.headers.get("X-Stainless-Retry-Count", 0))
            raise ConnectionError(
                f"{self.url} failed {'once' if tries == 1 else f'{tries} times'}, last with "
                f"{problem}; shards that are done stay, run again to go on"
            ) from error
        try:
            text = json.loads(response.content)["choices"][0]["message"]["content"]
        except (ValueError, RecursionError, KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            return self._refuse(f"no text in {response.content[:500]!r}")
        self._refused = 0
        return text

    def _question(self, found: Found) -> dict[str, Any]:
        buffer = io.BytesIO()
        Image.fromarray(highlight(found, self.longest_side)).save(buffer, "JPEG")
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        content = [
            {"type": "text", "text": self.prompt},
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}},
        ]
        return {"role": "user", "content": content}

    def _refuse(self, problem: str) -> str:
        self._refused += 1
        if self._refused >= MOST_REFUSED:
            raise ConnectionError(
                f"{self.url} refused {self._refused} requests in a row, last with {problem}"
            )
        return ""


def _read_bounded(response: httpx2.Response, seconds: float) -> None:
    """Read an answer up to `MOST_BYTES`; one that is compressed, perhaps a bomb, stays so.

    The client's own timeout is for each part of an answer: a slow trickle would never end.
    """
    response.headers.pop("Content-Encoding", None)
    stream: Any = response.stream
    end, body = time.monotonic() + seconds, b""
    for part in stream:
        body += part
        if len(body) >= MOST_BYTES:
            break
        if time.monotonic() > end:
            raise httpx2.ReadTimeout(f"an answer took more than {seconds} seconds")
    stream.close()
    response.stream = httpx2.ByteStream(body[:MOST_BYTES])
