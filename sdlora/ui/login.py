"""What is shown to whom has not logged in: one page of our own, as Gradio's form says nothing of a wait."""

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>sdlora: log in</title>
<style>
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
  body { display: grid; place-items: center; min-height: 90vh; margin: 0; }
  form { display: grid; gap: 0.75rem; width: min(20rem, 90vw); }
  h1 { margin: 0; font-size: 1.25rem; }
  label { display: grid; gap: 0.25rem; }
  input, button { font: inherit; padding: 0.5rem 0.75rem; border: 1px solid #8888; border-radius: 0.5rem; }
  button { color: #fff; background: #4f46e5; border: 0; cursor: pointer; }
  [role=alert] { min-height: 1.5em; margin: 0; color: light-dark(#b91c1c, #fca5a5); }
</style>
<form method="post" action="login">
  <h1>sdlora</h1>
  <label>Name <input name="username" autocomplete="username" required autofocus></label>
  <label>Password <input name="password" type="password" autocomplete="current-password" required></label>
  <button>Log in</button>
  <p role="alert"></p>
</form>
<script>
  document.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const said = document.querySelector("[role=alert]");
    said.textContent = "";
    try {
      const answer = await fetch("login", {method: "POST", body: new FormData(event.target)});
      if (answer.ok) location.reload();
      else said.textContent = answer.status === 429 ? await answer.text() : "Wrong name or password.";
    } catch {
      said.textContent = "The server does not answer; is it still running?";
    }
  });
</script>
"""
