"""The prompt templates for Ollama, and the texts at which it ends a reply."""

from glmtune.prompts import Template

# Ollama renders prompts by a template of its own, in Go's language, and adds the system prompt as the first message.
OLLAMA_TEMPLATES: dict[Template, str] = {
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
OLLAMA_STOPS: dict[Template, tuple[str, ...]] = {
    "chatglm3": ("<eos>", "<|user|>", "<|observation|>", "<|assistant|>"),
    "chatglm2": ("<eos>",),
    "tutorial": ("<eos>",),
}
