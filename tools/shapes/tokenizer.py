"""Train the demo model's SentencePiece tokenizer: python3 tokenizer.py OUT_DIR

Unigram, NMT-NFKC, dummy prefix and byte fallback, ids <pad>=0 </s>=1 <s>=2 <unk>=3, like UMT5's.
The corpus is the captions themselves, ordinary English words, and the default negative prompt, whose
phrases become pieces of their own.
"""
import json
import os
import sys
import tempfile

import sentencepiece

import dataset as D
import model

WORDS = """the of and to in is was for on that with as at by from it this be are or an not have has had were which
one two three four five six seven eight nine ten first last new old good best high low long short small large big
little great more most less very much many some any all each every other another same such only also then than
when where while after before during between under over above below into onto out off up down left right back
front top bottom side center middle corner edge near far inside outside around across along through against
man woman person people child boy girl cat dog bird fish horse tree flower grass leaf forest mountain river sea
ocean beach sky sun moon cloud rain snow wind fire water earth stone rock sand city street road house building
room window door table chair car train plane ship boat bike food fruit bread light shadow day night morning
evening winter summer spring autumn warm cold hot cool bright dark soft hard fast slow quick quiet loud
beautiful pretty nice clean clear smooth sharp flat round simple plain calm gentle happy sad young wild
walk walks walking run runs running jump jumps jumping fly flies flying dance dances dancing swim swims swimming
play plays playing look looks looking turn turns turning move moves moving fall falls falling rise rises rising
open opens opening close closes closing come comes coming go goes going stand stands standing sit sits sitting
make makes making show shows showing hold holds holding grow grows growing shrink shrinks shrinking
camera video film shot scene view close-up wide angle pan zoom tracking slow motion cinematic style quality
realistic detailed professional photo picture image painting drawing animation cartoon three-dimensional
color colour black white gray grey red orange yellow green blue cyan purple violet pink brown gold silver
circle disc ball square box cube triangle star shape object figure line dot point pattern background
what who how why there here now still always never often please video of a the and""".split()


def corpus():
    lines = []
    for combo in D.combinations():
        lines += [D.caption(combo, v) for v in range(3)]
    lines += [w for w in WORDS for _ in range(40)] + [w.capitalize() for w in WORDS]
    lines += [w for w in D.STRAY_WORDS for _ in range(40)]
    lines += [model.NEGATIVE] * 60 + [p for p in model.NEGATIVE.split(",") for _ in range(60)]
    lines += [c for c in map(chr, range(33, 127)) for _ in range(3)]
    return lines


def main(out):
    folder = os.path.join(out, model.TOKENIZER_DIR)
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory() as tmp:
        text = os.path.join(tmp, "corpus.txt")
        with open(text, "w", encoding="utf-8") as f:
            f.write("\n".join(corpus()) + "\n")
        sentencepiece.SentencePieceTrainer.train(
            input=text, model_prefix=os.path.join(tmp, "spiece"), model_type="unigram", vocab_size=1200,
            hard_vocab_limit=False, character_coverage=1.0, normalization_rule_name="nmt_nfkc",
            add_dummy_prefix=True, byte_fallback=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
            pad_piece="<pad>", eos_piece="</s>", bos_piece="<s>", unk_piece="<unk>", num_threads=1,
            shuffle_input_sentence=False, minloglevel=2)
        with open(os.path.join(tmp, "spiece.model"), "rb") as f:
            blob = f.read()
    with open(os.path.join(folder, "spiece.model"), "wb") as f:
        f.write(blob)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = dict(special, tokenizer_class="T5Tokenizer", extra_ids=0, model_max_length=model.TEXT_LEN)
    for name, value in (("special_tokens_map.json", special), ("tokenizer_config.json", config)):
        with open(os.path.join(folder, name), "w") as f:
            json.dump(value, f, indent=2)
            f.write("\n")
    tok = model.load_tokenizer(out)
    longest = max(len(model.encode_text(tok, D.caption(c, v))) for c in D.combinations() for v in range(4))
    print(f"{tok.get_piece_size()} pieces, {len(blob)} bytes; longest caption {longest} tokens, "
          f"negative prompt {len(model.encode_text(tok, model.NEGATIVE))}")


if __name__ == "__main__":
    main(sys.argv[1])
