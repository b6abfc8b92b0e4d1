"""`nearfar chat`: talk to whatever the fleet has, in a terminal or in a pipe, and see where each answer came from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nearfar.cli.common import Config, Home, Json, console, escape, print_json, settings
from nearfar.errors import InputError, NearfarError, NoCandidate, UnknownModel, Unreachable, by_code

if TYPE_CHECKING:
    import httpx

    from nearfar.settings import Settings

PATIENCE = 600.0
"""Seconds without any byte of an answer; a prompt may be long and a board slow."""
HELP = """\
  /auto /near /far   who may answer from now on
  /private           nothing leaves the fleet; again: undo
  /system TEXT       what the model is told first
  /new               forget this conversation
  /why               why the last answer came from where it did
  /quit              as Ctrl-D"""


def chat(
    text: Annotated[str | None, typer.Argument(help="What to say; else a conversation, or a pipe.")] = None,
    near: Annotated[bool, typer.Option("--near", help="Answered in the fleet, or not at all.")] = False,
    far: Annotated[bool, typer.Option("--far", help="Answered by a far end.")] = False,
    auto: Annotated[bool, typer.Option("--auto", help="nearfar decides, as it does without a flag.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Nothing leaves the fleet.")] = False,
    model: Annotated[str, typer.Option("--model", "-m", help="A model's name, instead of auto.")] = "auto",
    system: Annotated[str, typer.Option("--system", help="What the model is told first, or @FILE.")] = "",
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Most tokens of one answer.")] = 512,
    temperature: Annotated[float | None, typer.Option("--temperature", min=0, help="0 for the likeliest.")] = None,
    url: Annotated[str, typer.Option("--url", help="Gateway; else that of this home folder's node.")] = "",
    json: Json = False,
    home: Home = None,
    config: Config = None,
) -> None:
    """Talk to a language model of the fleet, or of a far end."""
    if near + far + auto > 1:
        raise InputError("--near, --far and --auto exclude each other.", "Give one of them.")
    chosen = settings({"home": str(home) if home else None, "config": str(config) if config else None})
    with closing(Talk(chosen, url)) as talk:
        talk.route = "near" if near else "far" if far else "auto"
        talk.private = private
        talk.fields = {"model": model, "max_tokens": max_tokens}
        if temperature is not None:
            talk.fields["temperature"] = temperature
        talk.tell_first(_text_of(system))
        if text is None and not sys.stdin.isatty():
            text = _piped()
        if text is None:
            _converse(talk)
            return
        if not text.strip():
            raise InputError("There is nothing to say.", 'Type: nearfar chat "Hello"')
        _once(talk, text, json)


def _piped() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError:
        raise InputError("What came by the pipe is no UTF-8 text.", "Give text to talk about.") from None


def _text_of(text: str) -> str:
    from pathlib import Path

    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{text[1:]} cannot be read: {error}.", "Give a text file.") from None


class Talk:
    """A conversation over HTTP with one gateway."""

    def __init__(self, chosen: Settings, url: str) -> None:
        import httpx

        self._url = url or _gateway(chosen)
        headers = {"user-agent": "nearfar-chat"}
        if key := _key(chosen):
            headers["authorization"] = f"Bearer {key}"
        verify: Any = chosen.gateway.tls_cert or True
        timeout = httpx.Timeout(PATIENCE, connect=5.0)
        self._http = httpx.Client(base_url=self._url, headers=headers, timeout=timeout, verify=verify, trust_env=False)
        self.messages: list[dict[str, str]] = []
        self.route = "auto"
        self.private = False
        self.fields: dict[str, Any] = {}
        self.about: dict[str, Any] = {}

    def close(self) -> None:
        self._http.close()

    def tell_first(self, text: str) -> None:
        """Replace the system message."""
        self.messages = [m for m in self.messages if m["role"] != "system"]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})

    def forget(self) -> None:
        self.messages = [m for m in self.messages if m["role"] == "system"]
        self.about = {}

    def say(self, text: str) -> Iterator[str]:
        """The answer, piece by piece; `about` holds where it came from when it is whole. Raises what befell it, and
        then the conversation is as it was before. While nobody can answer as they are only just starting, waits."""
        from nearfar.cli.starting import Patience, until_talker

        patience, began = Patience(), False
        while True:
            try:
                for piece in self._say(text):
                    began = True
                    yield piece
                return
            except (NoCandidate, UnknownModel):
                if began or not until_talker(self._starting, patience):
                    raise

    def _starting(self) -> list[dict[str, Any]]:
        """Services that may answer once they have started; none when the gateway does not tell."""
        import httpx

        from nearfar.cli.starting import talkers

        route = "near" if self.private and self.route == "auto" else self.route
        try:
            answer = self._http.get("/v1/fleet", timeout=5.0).raise_for_status()
            return talkers(answer.json()["services"], self.fields["model"], route)
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return []

    def _say(self, text: str) -> Iterator[str]:
        import httpx
        import msgspec

        asked = [*self.messages, {"role": "user", "content": text}]
        wishes = {"route": self.route, **({"privacy": "fleet"} if self.private else {})}
        body = {**self.fields, "messages": asked, "stream": True, "nearfar": wishes}
        parts: list[str] = []
        complete = False
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise _told(response)
                for line in response.iter_lines():
                    if not line.startswith("data:"):
                        continue
                    data = line[5:].strip()
                    if data == "[DONE]":
                        complete = True
                        break
                    chunk = msgspec.json.decode(data)
                    if chunk.get("error"):
                        raise _failure(chunk["error"])
                    self.about = chunk.get("nearfar") or self.about
                    for choice in chunk.get("choices") or ():
                        piece = (choice.get("delta") or {}).get("content")
                        if piece:
                            parts.append(piece)
                            yield piece
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise InputError(
                f"{self._url} is no address of a gateway.", "Give one like http://127.0.0.1:8080."
            ) from None
        except httpx.ConnectError as error:
            raise Unreachable(f"{self._url} cannot be reached: {error}.", "Does a node run there?") from None
        except httpx.HTTPError as error:
            raise Unreachable(f"{self._url} broke off: {error}.", "Is the node still there? Ask again.") from None
        except (ValueError, AttributeError):
            raise Unreachable(f"{self._url} answers what is no chat completion.", "Is it a nearfar gateway?") from None
        if not complete:
            raise Unreachable("The answer was cut before its end.", "Ask again.")
        self.messages = [*asked, {"role": "assistant", "content": "".join(parts)}]


def _gateway(chosen: Settings) -> str:
    import time

    from nearfar.cli.starting import LOOK_EVERY, Patience, node_is_coming
    from nearfar.node.identity import running

    patience = Patience()
    while node_is_coming(chosen.home, patience):
        time.sleep(LOOK_EVERY)
    found = [entry for entry in running(chosen.home) if entry.gateway]
    if not found:
        raise Unreachable(
            "No node runs in this home folder.", "Start one with 'nearfar up --model FILE.gguf', or give --url."
        )
    return str(found[0].gateway)


def _key(chosen: Settings) -> str:
    from nearfar.cli.up import read_keys

    keys = read_keys(chosen.gateway.api_key_file)
    return keys[0] if keys else ""


def _told(response: httpx.Response) -> NearfarError:
    """An error response as one of ours."""
    try:
        return _failure(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return Unreachable(f"The gateway answered {response.status_code}.", "Is it a nearfar gateway of this version?")


def _failure(error: dict[str, Any]) -> NearfarError:
    own = error.get("nearfar") or {}  # `code` beside it is OpenAI's word for the same
    return by_code(str(own.get("code") or ""))(str(error.get("message") or "The gateway failed."))


def said(about: dict[str, Any]) -> str:
    """Where an answer came from, in one line."""
    if not about:
        return "the gateway did not say where it came from"
    parts = [f"{about.get('where')}: {about.get('model')} on {str(about.get('served_by', '')).partition('/')[0]}"]
    parts.append(f"{about.get('tokens_out', 0)} tokens in {float(about.get('ms') or 0) / 1000:.2f} s")
    if about.get("first_token_ms"):
        parts.append(f"first after {float(about['first_token_ms']):.0f} ms")
    cost = float(about.get("cost") or 0)
    parts.append(f"{cost:.6f} {about.get('currency') or ''}".strip() if cost else "free")
    if about.get("moved"):
        parts.append(f"carried on elsewhere {about['moved']} time(s)")
    if about.get("state_moved"):
        parts.append(f"{about['state_moved']} tokens came along")
    return " · ".join(parts)


def _once(talk: Talk, text: str, as_json: bool) -> None:
    pieces = talk.say(text)
    if as_json:
        answer = "".join(pieces)
        print_json({"answer": answer, "nearfar": talk.about})
        return
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    if sys.stderr.isatty():
        console(error=True).print(f"[dim]{escape(said(talk.about))}[/]")


def _converse(talk: Talk) -> None:
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() its history

    out = console()
    out.print("[dim]Type a message; /help for more, Ctrl-D to end.[/]")
    while True:
        mark = f"{talk.route}{', private' if talk.private else ''}"
        try:
            text = input(f"{mark}> ").strip()
        except EOFError:
            out.print()
            return
        except KeyboardInterrupt:  # what was typed is let go of, the conversation is not
            out.print()
            continue
        if not text:
            continue
        if text.startswith("/"):
            if text in ("/quit", "/exit"):
                return
            _command(talk, text)
            continue
        try:
            for piece in talk.say(text):
                print(piece, end="", flush=True)
            print()
            out.print(f"[dim]  {escape(said(talk.about))}[/]")
        except KeyboardInterrupt:
            out.print("\n[dim]  stopped; it is not part of the conversation[/]")
        except NearfarError as error:
            out.print(f"\n[red]{escape(str(error))}[/]")


def _command(talk: Talk, text: str) -> None:
    out = console()
    verb, _, rest = text.partition(" ")
    match verb:
        case "/auto" | "/near" | "/far":
            talk.route = verb[1:]
        case "/private":
            talk.private = not talk.private
        case "/system":
            talk.tell_first(rest.strip())
        case "/new":
            talk.forget()
            out.print("[dim]  forgotten[/]")
        case "/why":
            for line in talk.about.get("why") or ("nothing was answered yet",):
                out.print(f"[dim]  {escape(str(line))}[/]")
        case "/help":
            out.print(HELP, markup=False)
        case _:
            out.print(f"[yellow]  {escape(verb)} is no command[/]\n{HELP}")
