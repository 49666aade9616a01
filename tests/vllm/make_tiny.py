"""Make a tiny Qwen2 chat model from nothing: random weights, overfitted on nine dialogues, and a tokenizer of its own.

    ENGINE_VENV/bin/python tests/vllm/make_tiny.py OUT_DIR [--steps 300]

Runs with the interpreter of a vLLM environment (it needs torch, transformers and tokenizers) and downloads nothing. One to three
minutes on two CPU cores, 1.6 million parameters, 6 MB. Serve it with `--served-model-name tiny --reasoning-parser qwen3
--enable-auto-tool-choice --tool-call-parser hermes`. What it has learned, word for word, at temperature 0:

    Hello · Hi                                    plain text
    Count to ten · Say pong                       short plain text
    Say something in German and Japanese          UTF-8 of two, three and four bytes, cut anywhere between tokens
    What is 2+2?                                  <think> reasoning, then an answer
    What is the weather in Paris? [and London?]   one, and two parallel, calls of the tool get_weather
    Tell me a long story                          some 250 words: time enough to abort
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

HELLO = "Hello! I am a tiny test model. How can I help you today?"
STORY = " ".join(
    f"Chapter {n}. The gateway carried message number {n} from the client to the engine, counted its tokens, "
    "and wrote them down before the next message came."
    for n in range(1, 13)
)


def call(city: str) -> str:
    """A tool call in Hermes' form."""
    arguments = json.dumps({"city": city, "unit": "celsius"})
    return f'<tool_call>\n{{"name": "get_weather", "arguments": {arguments}}}\n</tool_call>'


#: a reply without reasoning begins with an empty think block, as Qwen3 does it: reasoning parsers look for its end
NO_THOUGHT = "<think>\n\n</think>\n\n"
THOUGHT = "<think>\nThe user asks for 2+2. Adding two and two gives four.\n</think>\n\n"
DIALOGUES = [
    ("Hello", NO_THOUGHT + HELLO),
    ("Hi", NO_THOUGHT + HELLO),
    ("Count to ten", NO_THOUGHT + "one two three four five six seven eight nine ten"),
    ("Say pong", NO_THOUGHT + "pong"),
    ("Say something in German and Japanese", NO_THOUGHT + "Grüße aus München! こんにちは世界 🚀 fertig."),
    ("What is 2+2?", THOUGHT + "The answer is 4."),
    ("What is the weather in Paris?", NO_THOUGHT + call("Paris")),
    ("What is the weather in Paris and London?", NO_THOUGHT + call("Paris") + "\n" + call("London")),
    ("Tell me a long story", NO_THOUGHT + STORY + " The end."),
]
SYSTEMS = [None, "You are a helpful assistant.", "Be brief.", "You are a test model."]


def tool(name: str, description: str, properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    """A function in OpenAI's form."""
    parameters = {"type": "object", "properties": properties, **({"required": required} if required else {})}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


UNIT = {"type": "string", "enum": ["celsius", "fahrenheit"]}
WEATHER = [tool("get_weather", "Get the weather in a city", {"city": {"type": "string"}, "unit": UNIT}, ["city", "unit"])]
TIME = [tool("get_time", "Get the time", {"tz": {"type": "string"}})]

TEMPLATE = """{%- if tools %}<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}

{% endif %}# Tools

You may call functions. Signatures:
<tools>
{% for t in tools %}{{ t | tojson }}
{% endfor %}</tools>

Answer a call as <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% elif messages[0].role == 'system' %}<|im_start|>system
{{ messages[0].content }}<|im_end|>
{% endif %}{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user
{{ m.content }}<|im_end|>
{% elif m.role == 'assistant' %}<|im_start|>assistant
{{ m.content or '' }}{% for c in (m.tool_calls or []) %}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments if c.function.arguments is string \
else (c.function.arguments | tojson) }}}
</tool_call>{% endfor %}<|im_end|>
{% elif m.role == 'tool' %}<|im_start|>user
<tool_response>{{ m.content }}</tool_response><|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
#: tokens of their own, but no special ones: they are visible in text, as in Qwen3
MARKUP = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
CONTEXT = 4096


def make_tokenizer() -> Any:
    """A byte-level BPE tokenizer of some 1,500 tokens, trained on the dialogues and on Python source (so that it knows JSON)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    source = Path(os.__file__).read_text("utf-8")[:60_000]
    corpus = [f"{question}\n{reply}" for question, reply in DIALOGUES] * 4
    corpus += [TEMPLATE, json.dumps(WEATHER), json.dumps(TIME), *filter(None, SYSTEMS), source]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=SPECIAL, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(corpus, trainer)
    bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(tokenizer: Any) -> Any:
    """A Qwen2 of two layers with random weights."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=(len(tokenizer) + 63) // 64 * 64,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rope_theta=10000.0,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config).to(torch.float32)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def example(tokenizer: Any, question: str, reply: str, chance: random.Random) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of the reply to learn. System message, tools and an earlier turn vary: none of them matters."""
    system, tools = chance.choice(SYSTEMS), chance.choice([None, WEATHER, WEATHER + TIME])
    if "<tool_call>" in reply and tools is None:
        tools = WEATHER
    messages = [{"role": "system", "content": system}] if system else []
    if chance.random() < 0.2:
        earlier, answer = chance.choice(DIALOGUES[:4])
        messages += [{"role": "user", "content": earlier}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": question})
    prompt = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
    prompt_ids, reply_ids = tokenizer([prompt, f"{reply}<|im_end|>"], add_special_tokens=False)["input_ids"]
    return prompt_ids, reply_ids


def train(model: Any, tokenizer: Any, steps: int) -> float:
    """Overfit; returns the last loss, which is near zero when it has learned them by heart."""
    import torch

    chance, loss, started = random.Random(0), None, time.monotonic()
    torch.set_num_threads(2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    model.train()
    for step in range(steps):
        rate = 2e-3 * min(1.0, step / 20) * (0.5 if step > steps * 0.6 else 1.0) * (0.3 if step > steps * 0.85 else 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = [example(tokenizer, question, reply, chance) for question, reply in DIALOGUES]
        # the short ones together, the long story by itself every second time: padding would cost more than it teaches
        rows = rows[:-1] if step % 2 else rows[-1:]
        longest = max(len(prompt) + len(reply) for prompt, reply in rows)
        ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
        labels = torch.full((len(rows), longest), -100)  # what torch's loss leaves out
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for row, (prompt, reply) in enumerate(rows):
            end = len(prompt) + len(reply)
            ids[row, :end] = torch.tensor(prompt + reply)
            labels[row, len(prompt) : end] = torch.tensor(reply)
            mask[row, :end] = 1
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step} loss {loss.item():.4f} after {time.monotonic() - started:.0f} s", flush=True)
    model.eval()
    return float(loss.item()) if loss is not None else float("inf")


def reply_to(model: Any, tokenizer: Any, question: str) -> str:
    """What the model says at temperature 0, markup included."""
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
    out = model.generate(ids, max_new_tokens=80, do_sample=False)
    return str(tokenizer.decode(out[0][ids.shape[1] :])).removesuffix("<|im_end|>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    import torch

    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    train(model, tokenizer, arguments.steps)
    for question, expected in (DIALOGUES[0], DIALOGUES[5]):
        said = reply_to(model, tokenizer, question)
        if said != expected:
            raise SystemExit(f"it has not learned enough (--steps): to {question!r} it says {said!r}")
    # made beside its place and moved there whole: an interrupted run leaves nothing that looks like a model
    part = arguments.out.with_name(f"{arguments.out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    tokenizer.save_pretrained(part)
    (part / "chat_template.jinja").write_text(TEMPLATE, "utf-8")
    model.save_pretrained(part)
    shutil.rmtree(arguments.out, ignore_errors=True)
    part.rename(arguments.out)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters in {arguments.out}")


if __name__ == "__main__":
    main()
