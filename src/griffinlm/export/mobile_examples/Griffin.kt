// A model on Android: tokens in, logits out, and a state of fixed size that can be saved between the two.
//
// Needs the package com.microsoft.onnxruntime:onnxruntime-android, or a reduced build of it with the operators of
// required_operators.config; and model.ort with model.json from the same export.

package griffin

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import java.io.DataInputStream
import java.io.DataOutputStream
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import java.nio.LongBuffer
import org.json.JSONArray
import org.json.JSONObject

/** One array of the state. In a ring the row of the token at position p stands in slot p modulo shape[1]. */
class ArraySpec(val name: String, val shape: LongArray, val isRing: Boolean) {
    val size get() = shape.fold(1L, Long::times).toInt()
    val rowSize get() = shape.drop(2).fold(1L, Long::times).toInt()
}

/** All that the model remembers of one conversation; a copy of it is a second conversation. */
class State(var numTokens: Long, val arrays: Map<String, FloatArray>) {
    fun copy() = State(numTokens, arrays.mapValues { it.value.copyOf() })
}

class Griffin(folder: File) : AutoCloseable {
    private val description = JSONObject(File(folder, "model.json").readText())
    private val chunkTokens = description.getInt("max_chunk_tokens")
    private val ringStep = description.getLong("ring_step_slots")
    private val numChoices = description.getInt("num_choices")
    private val specs = specsOf(description.getJSONArray("state"))
    private val environment = OrtEnvironment.getEnvironment()
    private val session: OrtSession =
        environment.createSession(File(folder, description.getString("graph")).path, OrtSession.SessionOptions())

    /** A state that has read nothing. */
    fun newState() = State(0, specs.associate { it.name to FloatArray(it.size) })

    /** Brings a state forward by tokens, at least one, and gives the logits behind the last. */
    fun read(state: State, tokens: List<Long>): FloatArray =
        tokens.chunked(chunkTokens).map { call(state, it) }.last()

    /** The best token of those that the tokenizer has. */
    fun best(logits: FloatArray): Long = (0 until numChoices).maxBy { logits[it] }.toLong()

    private fun call(state: State, tokens: List<Long>): FloatArray {
        val numTokens = tokens.size.toLong()
        val positions = LongArray(tokens.size) { state.numTokens + it }
        val inputs = HashMap<String, OnnxTensor>()
        try {
            inputs["token_ids"] = whole(tokens.toLongArray(), longArrayOf(1, numTokens))
            inputs["positions"] = whole(positions, longArrayOf(1, numTokens))
            inputs["num_before"] = whole(longArrayOf(state.numTokens), longArrayOf(1))
            inputs["logit_index"] = whole(longArrayOf(0, numTokens - 1), longArrayOf(1, 2))
            for (spec in specs) inputs[spec.name] = input(spec, state)
            session.run(inputs).use { outputs ->
                for (spec in specs) keep(spec, state, positions, values(outputs, spec.name + ".new"))
                state.numTokens += numTokens
                val logits = values(outputs, "logits")
                return FloatArray(logits.remaining()).also { logits.get(it) }
            }
        } finally {
            inputs.values.forEach(OnnxTensor::close)
        }
    }

    /** Of a ring only the slots that can hold anything, in steps, so that calls repeat. */
    private fun input(spec: ArraySpec, state: State): OnnxTensor {
        val shape = spec.shape.copyOf()
        if (spec.isRing) {
            val steps = maxOf(1L, (state.numTokens + ringStep - 1) / ringStep)
            shape[1] = minOf(shape[1], steps * ringStep)
        }
        val size = shape.fold(1L, Long::times).toInt()
        return OnnxTensor.createTensor(environment, FloatBuffer.wrap(state.arrays.getValue(spec.name), 0, size), shape)
    }

    /** Writes the whole array, or of a ring the rows of the tokens that were read. */
    private fun keep(spec: ArraySpec, state: State, positions: LongArray, values: FloatBuffer) {
        val array = state.arrays.getValue(spec.name)
        if (!spec.isRing) {
            values.get(array)
            return
        }
        val numSlots = spec.shape[1]
        for (index in maxOf(0, positions.size - numSlots.toInt()) until positions.size) {
            values.position(index * spec.rowSize)
            values.get(array, (positions[index] % numSlots).toInt() * spec.rowSize, spec.rowSize)
        }
    }

    private fun whole(numbers: LongArray, shape: LongArray) =
        OnnxTensor.createTensor(environment, LongBuffer.wrap(numbers), shape)

    private fun values(outputs: OrtSession.Result, name: String): FloatBuffer =
        (outputs.get(name).get() as OnnxTensor).floatBuffer

    /** Writes a state: the count of tokens, then the arrays in the order of model.json, all little-endian. */
    fun save(state: State, file: File) {
        DataOutputStream(file.outputStream().buffered()).use { out ->
            out.writeLong(java.lang.Long.reverseBytes(state.numTokens))
            for (spec in specs) {
                val bytes = ByteBuffer.allocate(4 * spec.size).order(ByteOrder.LITTLE_ENDIAN)
                bytes.asFloatBuffer().put(state.arrays.getValue(spec.name))
                out.write(bytes.array())
            }
        }
    }

    /** The state that `save` wrote with the same model. */
    fun load(file: File): State {
        val state = newState()
        require(file.length() == 8 + specs.sumOf { 4L * it.size }) { "$file holds no state of this model" }
        DataInputStream(file.inputStream().buffered()).use { input ->
            state.numTokens = java.lang.Long.reverseBytes(input.readLong())
            for (spec in specs) {
                val bytes = ByteArray(4 * spec.size).also(input::readFully)
                ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(state.arrays.getValue(spec.name))
            }
        }
        return state
    }

    override fun close() = session.close()

    private fun specsOf(listed: JSONArray) = List(listed.length()) { index ->
        val entry = listed.getJSONObject(index)
        require(entry.getString("dtype") == "float32") { "this example reads states of float32 only" }
        val shape = entry.getJSONArray("shape")
        ArraySpec(entry.getString("name"), LongArray(shape.length(), shape::getLong), entry.getBoolean("is_ring"))
    }
}
