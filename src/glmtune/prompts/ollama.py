"""Prompt templates in the language of Go, by which Ollama renders; it puts the system prompt in front."""

from glmtune.prompts.conversation import Template

TEMPLATES: dict[Template, str] = {
    "chatglm3": (
        '[gMASK]<sop>{{ range .Messages }}<|{{ if eq .Role "tool" }}observation{{ else }}{{ .Role }}{{ end }}|>\n'
        "{{ if .Content }} {{ .Content }}{{ end }}{{ end }}<|assistant|>"
    ),
    "tutorial": (
        '[gMASK]<sop>{{ range .Messages }}{{ if eq .Role "system" }}<|system|>\n{{ .Content }}\n'
        '{{ else if eq .Role "user" }}<|user|>\n{{ .Content }}<|assistant|>\n'
        "{{ else }} {{ .Content }}<eos>{{ end }}{{ end }}"
    ),
}
STOPS: dict[Template, tuple[str, ...]] = {
    "chatglm3": ("<eos>", "<|user|>", "<|observation|>", "<|assistant|>"),
    "tutorial": ("<eos>",),
}
