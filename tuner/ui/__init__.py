"""The page. Only this package and app.py import gradio."""
