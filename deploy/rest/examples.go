package main

import (
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// addExamples gives the definitions of messages with a oneof an example. OpenAPI does not know what a oneof is: a page would fill in all of
// its members, and such a request is refused.
func addExamples(definitions object) {
	seen := map[protoreflect.FullName]bool{}
	var visit func(message protoreflect.MessageDescriptor)
	visit = func(message protoreflect.MessageDescriptor) {
		if seen[message.FullName()] {
			return
		}
		seen[message.FullName()] = true
		if definition := definitionOf(definitions, message); definition != nil && hasChoice(message) {
			properties, _ := definition["properties"].(object)
			if found := example(message, nil); len(found) > 0 {
				for name := range found {
					if properties[name] == nil { // a parameter of the path
						delete(found, name)
					}
				}
				definition["example"] = found
			}
		}
		for index := range message.Fields().Len() {
			if inner := message.Fields().Get(index).Message(); inner != nil {
				visit(inner)
			}
		}
	}
	for _, file := range contracts {
		for index := range file.Services().Len() {
			methods := file.Services().Get(index).Methods()
			for index := range methods.Len() {
				visit(methods.Get(index).Input())
			}
		}
	}
}

// definitionOf is the definition of a message: as the generator names it, by as much of the full name as tells it from others, and a
// request of which the path has a part by its method. nil: it has none.
func definitionOf(definitions object, message protoreflect.MessageDescriptor) object {
	parts := strings.Split(string(message.FullName()), ".")
	for index := range slices.Backward(parts) {
		if found, ok := definitions[strings.Join(parts[index:], ".")].(object); ok && isOf(found, message) {
			return found
		}
	}
	if method, isRequest := strings.CutSuffix(string(message.Name()), "Request"); isRequest {
		if found, ok := definitions[method+"Body"].(object); ok && isOf(found, message) {
			return found
		}
	}
	return nil
}

func isOf(definition object, message protoreflect.MessageDescriptor) bool {
	properties, _ := definition["properties"].(object)
	for name := range properties {
		if message.Fields().ByJSONName(name) == nil {
			return false
		}
	}
	return len(properties) > 0
}

func hasChoice(message protoreflect.MessageDescriptor) bool {
	for index := range message.Oneofs().Len() {
		if !message.Oneofs().Get(index).IsSynthetic() {
			return true
		}
	}
	return false
}

// example is a message with a value in each field that callers send, and in one member of each oneof. What is within itself is left out.
func example(message protoreflect.MessageDescriptor, above []protoreflect.FullName) object {
	found := object{}
	above = append(slices.Clone(above), message.FullName())
	for index := range message.Fields().Len() {
		field := message.Fields().Get(index)
		choice := field.ContainingOneof()
		behaviour, _ := proto.GetExtension(field.Options(), annotations.E_FieldBehavior).([]annotations.FieldBehavior)
		if slices.Contains(behaviour, annotations.FieldBehavior_OUTPUT_ONLY) ||
			choice != nil && !choice.IsSynthetic() && chosen(choice) != field {
			continue
		}
		switch value := exampleValue(field, above); {
		case value == nil:
		case field.IsList():
			found[field.JSONName()] = []any{value}
		default:
			found[field.JSONName()] = value
		}
	}
	return found
}

// chosen is the first member of a oneof that has something to say.
func chosen(choice protoreflect.OneofDescriptor) protoreflect.FieldDescriptor {
	for index := range choice.Fields().Len() {
		if field := choice.Fields().Get(index); field.Enum() == nil || field.Enum().FullName() != "google.protobuf.NullValue" {
			return field
		}
	}
	return choice.Fields().Get(0)
}

// exampleValue is a value of a field, or of one element of it; nil: there is none that says anything.
func exampleValue(field protoreflect.FieldDescriptor, above []protoreflect.FullName) any {
	if field.IsMap() {
		if value := exampleValue(field.MapValue(), above); value != nil && field.MapKey().Kind() == protoreflect.StringKind {
			return object{"key": value}
		}
		return nil
	}
	switch field.Kind() {
	case protoreflect.BoolKind:
		return true
	case protoreflect.EnumKind:
		return string(field.Enum().Values().Get(field.Enum().Values().Len() - 1).Name())
	case protoreflect.StringKind:
		return "string"
	case protoreflect.BytesKind:
		return "AAAA"
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind, protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return "1"
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return exampleMessage(field.Message(), above)
	}
	return 1
}

// wellKnown are messages that JSON writes in a way of their own.
var wellKnown = map[protoreflect.FullName]any{
	"google.protobuf.Timestamp": "2030-01-01T00:00:00Z", "google.protobuf.Duration": "60s", "google.protobuf.Any": nil,
	"google.protobuf.Struct": object{}, "google.protobuf.Value": nil, "google.protobuf.FieldMask": nil,
}

func exampleMessage(message protoreflect.MessageDescriptor, above []protoreflect.FullName) any {
	if value, known := wellKnown[message.FullName()]; known {
		return value
	}
	if slices.Contains(above, message.FullName()) {
		return nil
	}
	return example(message, above)
}
