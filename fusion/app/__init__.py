"""The browser app: one study in, its findings, heat maps and similar studies out. Only `page` imports gradio."""
