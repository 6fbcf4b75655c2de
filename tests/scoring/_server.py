"""A small OpenAI-compatible server of a `transformers` model, with faults to order.

`serve` is run in a process of its own. ``POST /control`` sets what is wrong with it:
``{"faults": [...]}``, one for each of the next requests (see `FAULTS`; None is no fault), and any
of `SETTINGS`. ``GET /log`` tells what was asked. It follows vLLM beyond OpenAI:
token ids as prompts, ``logprob_token_ids`` and ``return_tokens_as_token_ids``.
"""

import asyncio
import gzip
import socket

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from transformers import AutoModelForCausalLM, AutoTokenizer

SETTINGS = {
    "delay": 0.0,  # seconds before every reply
    "logprobs": True,  # False: the field is left out, as by servers that have none
    "most": 20,  # tokens in top_logprobs at most
    "token_ids": True,  # whether logprob_token_ids is known
    "echo": True,  # whether echo is known
    "draw": False,  # the drawn token is the least likely one, added to the likeliest
    "thinks": None,  # a token that comes before every answer, all but certain
    "as_content": False,  # completions answer in the form of chat completions
    "key": None,  # the key that is asked for
    "retry_after": "0.2",
}
FAULTS = (
    "drop", "slow", "429", "500", "400", "garbage", "empty", "nan", "bare", "redirect", "bomb",
    "deep",
)  # fmt: skip

BOMB = gzip.compress(b"[" + b" " * (16 << 20)) + gzip.compress(b" " * (16 << 20)) * 31  # 512 MiB

state = {"faults": [], "requests": [], "at_once": 0, "most_at_once": 0, **SETTINGS}


async def control(request):
    state.update({**SETTINGS, "faults": [], "requests": [], "most_at_once": 0})
    state.update(await request.json())
    return JSONResponse({})


async def log(request):
    return JSONResponse({name: state[name] for name in ("requests", "most_at_once")})


async def broken():
    yield b'{"choices": ['
    raise ConnectionResetError("dropped on purpose")


async def faulty(fault):
    """Reply of a fault, or None for an ordinary one."""
    if fault == "slow":
        await asyncio.sleep(3)
    replies = {
        "drop": lambda: StreamingResponse(broken(), headers={"content-length": "1000"}),
        "429": lambda: Response(
            "slow down", status_code=429, headers={"Retry-After": state["retry_after"]}
        ),
        "500": lambda: Response("out of order", status_code=500),
        "400": lambda: JSONResponse({"error": {"message": "too long"}}, status_code=400),
        "garbage": lambda: Response('{"choices": [', media_type="application/json"),
        "empty": lambda: JSONResponse({"choices": []}),
        "bare": lambda: JSONResponse({"choices": [{"text": " A"}]}),
        "nan": lambda: Response(
            '{"choices": [{"logprobs": {"top_logprobs": [{" A": NaN, " B": -1.0}]}}]}',
            media_type="application/json",
        ),
        "deep": lambda: Response("[" * 100_000, media_type="application/json"),
        "bomb": lambda: Response(BOMB, headers={"Content-Encoding": "gzip"}),
        "redirect": lambda: Response(status_code=307, headers={"Location": "http://localhost:1/"}),
    }
    return replies[fault]() if fault in replies else None


async def answer(request, chat):
    body = await request.json()
    state["requests"].append(body)
    state["at_once"] += 1
    state["most_at_once"] = max(state["most_at_once"], state["at_once"])
    try:
        fault = state["faults"].pop(0) if state["faults"] else None
        await asyncio.sleep(state["delay"])
        given = request.headers.get("authorization")
        if state["key"] and given != f"Bearer {state['key']}":
            return JSONResponse({"error": f"incorrect key {given}"}, status_code=401)
        return await faulty(fault) or JSONResponse(completed(body, chat))
    finally:
        state["at_once"] -= 1


def completed(body, chat):
    if chat:
        text = tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    elif isinstance(body["prompt"], str):
        ids = tokenizer(body["prompt"])["input_ids"]
    else:
        ids = body["prompt"]
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)  # (T, V)
    choice = {"index": 0, "text": "", "finish_reason": "length"}
    if state["logprobs"]:
        choice["logprobs"] = positions(body, chat, ids, logprobs)
    return {"object": "completion", "model": body["model"], "choices": [choice]}


def positions(body, chat, ids, logprobs):
    last = logprobs[-1]
    drawn = int(last.argmin() if state["draw"] else last.argmax())
    exact = body.get("logprob_token_ids") if state["token_ids"] else None
    asked = body["top_logprobs"] if chat else body["logprobs"]
    shown = exact or last.topk(min(asked, state["most"], len(last))).indices.tolist()
    by_id = body.get("return_tokens_as_token_ids")
    names = {t: f"token_id:{t}" if by_id else tokenizer.decode([t]) for t in (*shown, drawn)}
    pairs = [(names[t], last[t].item()) for t in dict.fromkeys((*shown, drawn))]
    if state["thinks"]:
        pairs.insert(0, (state["thinks"], -1e-6))
    if chat or state["as_content"]:
        top = [{"token": name, "logprob": value} for name, value in pairs]
        own = {"token": names[drawn], "logprob": last[drawn].item()}
        return {"content": [{**own, "top_logprobs": top}]}
    found = {"tokens": [names[drawn]], "top_logprobs": [dict(pairs)]}
    found["token_logprobs"] = [last[drawn].item()]
    if body.get("echo") and state["echo"]:
        own = [logprobs[t - 1, ids[t]].item() for t in range(1, len(ids))]
        found["token_logprobs"] = [None, *own, last[drawn].item()]
    return found


async def completions(request):
    return await answer(request, chat=False)


async def chat_completions(request):
    return await answer(request, chat=True)


app = Starlette(
    routes=[
        Route("/control", control, methods=["POST"]),
        Route("/log", log),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    ]
)


def serve(folder, tell):
    """Serve the model of a folder, once `tell` is told the port."""
    global tokenizer, model
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    listening = socket.create_server(("127.0.0.1", 0))
    tell(listening.getsockname()[1])
    uvicorn.Server(uvicorn.Config(app, log_level="critical")).run(sockets=[listening])
