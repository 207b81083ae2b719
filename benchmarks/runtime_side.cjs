// The same as runtime_side.py for onnxruntime-node: NODE_PATH=.../node_modules
//   node benchmarks/runtime_side.cjs model.onnx clips.json answers.json
// clips.json: [{"file": raw bytes, "shape": [1, T, H, W, 3]}, ...]
const fs = require("fs");
const ort = require("onnxruntime-node");

async function main(model, clips, answers) {
  const session = await ort.InferenceSession.create(model, { executionProviders: ["cpu"] });
  const rows = [];
  for (const { file, shape } of JSON.parse(fs.readFileSync(clips))) {
    const frames = new ort.Tensor("uint8", new Uint8Array(fs.readFileSync(file)), shape);
    rows.push(Array.from((await session.run({ frames })).probabilities.data));
  }
  fs.writeFileSync(answers, JSON.stringify(rows));
  console.log(require("onnxruntime-node/package.json").version);
}

main(...process.argv.slice(2));
