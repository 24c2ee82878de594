// Writes a conversation as a line of messages; a question without an answer at its end is left out.
(shown, system) => {
    const text = content => [content].flat().map(part => typeof part === 'string' ? part : part.text ?? '').join('');
    const messages = shown.map(({role, content}) => ({role, content: text(content)}));
    if (system?.trim()) messages.unshift({role: 'system', content: system.trim()});
    while (messages.length && messages.at(-1).role !== 'assistant') messages.pop();
    if (!messages.length) return;
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([JSON.stringify({messages}) + '\n'], {type: 'application/jsonl'}));
    link.download = 'conversation.jsonl';
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
