/* Search from file:// addresses, where browsers refuse workers: the worker's script runs in a hidden frame instead. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      this.inside = frame.contentWindow
      this.ready = new Promise(resolve => { this.inside.whenReady = resolve })
      const page = frame.contentDocument
      page.open()
      page.write(`<html><body><script>
        postMessage = (...message) => parent.postMessage(...message, "*")
        importScripts = (...urls) => urls.reduce((earlier, url) => earlier.then(() => new Promise(resolve => {
          const script = document.createElement("script")
          script.src = url
          script.onload = resolve
          document.body.appendChild(script)
        })), Promise.resolve())
      <\/script><script src="${url}" onload="whenReady()"><\/script></body></html>`)
      page.close()
      window.addEventListener("message", ({ source, data }) => {
        if (source === this.inside) {
          const event = new MessageEvent("message", { data })
          this.dispatchEvent(event)
          if (this.onmessage) this.onmessage(event)
        }
      })
    }
    postMessage(message) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data: message })))
    }
    terminate() {}
  }
}
