// Search on pages opened from a folder: browsers start no worker from file://, so its script runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(script) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.srcdoc = "<!doctype html><title>worker</title>"
      this.scope = new Promise((loaded) => {
        frame.addEventListener("load", () => {
          const scope = frame.contentWindow, tag = frame.contentDocument.createElement("script")
          scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }))
          tag.addEventListener("load", () => loaded(scope))
          tag.src = script
          frame.contentDocument.body.append(tag)
        }, { once: true })
      })
      document.addEventListener("DOMContentLoaded", () => document.body.append(frame))
      if (document.readyState !== "loading") document.body.append(frame)
    }

    postMessage(data) {
      this.scope.then((scope) => scope.dispatchEvent(new scope.MessageEvent("message", { data })))
    }
  }
}
