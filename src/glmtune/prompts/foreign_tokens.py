"""Letters that stand for special tokens in the chat formats of common models, and should not be left in data."""

import re

ROLE_TOKEN = re.compile(
    r"<\|(?:user|assistant|system|observation|im_start|im_end|endoftext|eot_id|start_header_id|end_header_id)\|>|"
    r"\[gMASK\]|<sop>|<eop>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|\[Round \d+\]|</s>|"
    r"###\s*(?:Instruction|Response)\s*:"
)
