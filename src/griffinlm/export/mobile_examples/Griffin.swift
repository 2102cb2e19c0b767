// A model on iOS: tokens in, logits out, and a state of fixed size that can be saved between the two.
//
// Needs the package onnxruntime-objc (or onnxruntime-swift-package-manager), or a reduced build of it with the operators
// of required_operators.config; and model.ort with model.json from the same export.

import Foundation
import onnxruntime_objc

/// One array of the state. In a ring the row of the token at position p stands in slot p modulo shape[1].
struct ArraySpec: Decodable {
    let name: String
    let dtype: String
    let shape: [Int]
    let isRing: Bool

    enum CodingKeys: String, CodingKey {
        case name, dtype, shape
        case isRing = "is_ring"
    }

    var size: Int { shape.reduce(1, *) }
    var rowSize: Int { shape.dropFirst(2).reduce(1, *) }
}

struct Description: Decodable {
    let graph: String
    let state: [ArraySpec]
    let numChoices: Int
    let maxChunkTokens: Int
    let ringStepSlots: Int

    enum CodingKeys: String, CodingKey {
        case graph, state
        case numChoices = "num_choices"
        case maxChunkTokens = "max_chunk_tokens"
        case ringStepSlots = "ring_step_slots"
    }
}

/// All that the model remembers of one conversation. It is a value: a copy of it is a second conversation.
struct State {
    var numTokens: Int
    var arrays: [String: [Float]]
}

enum GriffinError: Error {
    case noStateOfThisModel(URL)
    case unknownType(String)
}

final class Griffin {
    private let description: Description
    private let session: ORTSession

    init(folder: URL) throws {
        let content = try Data(contentsOf: folder.appendingPathComponent("model.json"))
        description = try JSONDecoder().decode(Description.self, from: content)
        if let other = description.state.first(where: { $0.dtype != "float32" }) {
            throw GriffinError.unknownType(other.dtype)
        }
        let path = folder.appendingPathComponent(description.graph).path
        session = try ORTSession(
            env: ORTEnv(loggingLevel: .warning), modelPath: path, sessionOptions: ORTSessionOptions())
    }

    /// A state that has read nothing.
    func newState() -> State {
        let arrays = description.state.map { ($0.name, [Float](repeating: 0, count: $0.size)) }
        return State(numTokens: 0, arrays: Dictionary(uniqueKeysWithValues: arrays))
    }

    /// Brings a state forward by tokens, at least one, and gives the logits behind the last.
    func read(_ state: inout State, _ tokens: [Int]) throws -> [Float] {
        var logits: [Float] = []
        for start in stride(from: 0, to: tokens.count, by: description.maxChunkTokens) {
            let stop = min(start + description.maxChunkTokens, tokens.count)
            logits = try call(&state, Array(tokens[start..<stop]))
        }
        return logits
    }

    /// The best token of those that the tokenizer has.
    func best(_ logits: [Float]) -> Int {
        (0..<description.numChoices).max { logits[$0] < logits[$1] }!
    }

    private func call(_ state: inout State, _ tokens: [Int]) throws -> [Float] {
        let positions = tokens.indices.map { state.numTokens + $0 }
        var inputs = [
            "token_ids": try whole(tokens, [1, tokens.count]),
            "positions": try whole(positions, [1, tokens.count]),
            "num_before": try whole([state.numTokens], [1]),
            "logit_index": try whole([0, tokens.count - 1], [1, 2]),
        ]
        for spec in description.state { inputs[spec.name] = try input(spec, state) }
        let names = Set(description.state.map { $0.name + ".new" } + ["logits"])
        let outputs = try session.run(withInputs: inputs, outputNames: names, runOptions: nil)
        for spec in description.state { keep(spec, &state, positions, try values(outputs[spec.name + ".new"]!)) }
        state.numTokens += tokens.count
        return try values(outputs["logits"]!)
    }

    /// Of a ring only the slots that can hold anything, in steps, so that calls repeat.
    private func input(_ spec: ArraySpec, _ state: State) throws -> ORTValue {
        var shape = spec.shape
        if spec.isRing {
            let step = description.ringStepSlots
            shape[1] = min(shape[1], max(1, (state.numTokens + step - 1) / step) * step)
        }
        let used = state.arrays[spec.name]!.prefix(shape.reduce(1, *))
        let data = used.withUnsafeBytes { NSMutableData(bytes: $0.baseAddress!, length: $0.count) }
        return try ORTValue(tensorData: data, elementType: .float, shape: shape.map { NSNumber(value: $0) })
    }

    /// Writes the whole array, or of a ring the rows of the tokens that were read.
    private func keep(_ spec: ArraySpec, _ state: inout State, _ positions: [Int], _ values: [Float]) {
        guard spec.isRing else {
            state.arrays[spec.name] = values
            return
        }
        let (numSlots, size) = (spec.shape[1], spec.rowSize)
        for index in max(0, positions.count - numSlots)..<positions.count {
            let slot = positions[index] % numSlots
            state.arrays[spec.name]!.replaceSubrange(
                slot * size..<(slot + 1) * size, with: values[index * size..<(index + 1) * size])
        }
    }

    private func whole(_ numbers: [Int], _ shape: [Int]) throws -> ORTValue {
        let data = numbers.map(Int64.init).withUnsafeBytes { NSMutableData(bytes: $0.baseAddress!, length: $0.count) }
        return try ORTValue(tensorData: data, elementType: .int64, shape: shape.map { NSNumber(value: $0) })
    }

    private func values(_ value: ORTValue) throws -> [Float] {
        try (value.tensorData() as Data).withUnsafeBytes { Array($0.bindMemory(to: Float.self)) }
    }

    /// Writes a state: the count of tokens, then the arrays in the order of model.json, all little-endian.
    func save(_ state: State, to file: URL) throws {
        var data = withUnsafeBytes(of: Int64(state.numTokens).littleEndian) { Data($0) }
        for spec in description.state { state.arrays[spec.name]!.withUnsafeBytes { data.append(contentsOf: $0) } }
        try data.write(to: file, options: .atomic)
    }

    /// The state that `save` wrote with the same model.
    func load(from file: URL) throws -> State {
        let data = try Data(contentsOf: file)
        guard data.count == 8 + description.state.reduce(0, { $0 + 4 * $1.size }) else {
            throw GriffinError.noStateOfThisModel(file)
        }
        var state = newState()
        state.numTokens = Int(data.prefix(8).withUnsafeBytes { Int64(littleEndian: $0.loadUnaligned(as: Int64.self)) })
        var start = 8
        for spec in description.state {
            let bytes = data.subdata(in: start..<start + 4 * spec.size)
            state.arrays[spec.name] = bytes.withUnsafeBytes { Array($0.bindMemory(to: Float.self)) }
            start += 4 * spec.size
        }
        return state
    }
}
